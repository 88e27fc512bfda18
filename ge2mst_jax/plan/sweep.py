"""A sweep: plans of one experiment over topologies, batches and remat policies, kept in a file as they are made."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ge2mst_jax.checks import one_line
from ge2mst_jax.files import read_json, write_whole
from ge2mst_jax.plan.make import OutOfMemory, Plan, make_plan
from ge2mst_jax.plan.topology import Pod
from ge2mst_jax.provenance import commit, digest_of_code, version
from ge2mst_jax.train.config import TrainConfig, as_json
from ge2mst_jax.train.setup import check_parts
from ge2mst_jax.train.sharding import make_mesh

_FIELDS = {"topology", "config", "code", "tools", "commit", "plan", "refused"}


@dataclasses.dataclass(frozen=True)
class Point:
    """One plan of a sweep that is to be made: an experiment's train step on a pod."""

    pod: Pod
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.pod.topology}, batch {self.config.batch_size:,}, remat {self.config.remat}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan of a sweep.

    Args:
        topology, config: what was planned.
        code, tools: SHA-256 of this package's sources, and versions: what it was planned with.
        commit: of the checkout, for people: two commits may have the same sources.
        plan: `None` where the compiler found no room.
        refused: what it said then.
    """

    topology: str
    config: dict
    code: str
    tools: dict[str, str | None]
    commit: str | None
    plan: Plan | None = None
    refused: str | None = None

    @property
    def identity(self) -> str:
        """What a row must have in common with another to stand for it."""
        return json.dumps([self.point, self.code, self.tools], sort_keys=True)

    @property
    def point(self) -> str:
        """What was planned, as text."""
        return json.dumps([self.topology, self.config], sort_keys=True)

    @property
    def chip_hours(self) -> float:
        """Of the recipe; infinite where it does not fit."""
        return self.plan.chip_hours if self.plan is not None and self.plan.fits else float("inf")

    def as_dict(self) -> dict:
        """For JSON."""
        return vars(self) | {"plan": None if self.plan is None else self.plan.as_dict()}


def make_points(config: TrainConfig, pods: list[Pod], batches, remats) -> list[Point]:
    """Every combination, once; nothing is compiled.

    Args:
        config: the experiment; its own batch or remat policy stands where none is given.
        pods: from `open_topology`.
        batches: global.
        remats: policies, as of `TrainConfig`.

    Raises:
        ValueError: a value out of range, or a batch that one of the pods cannot share; names both.
    """
    points = []
    for pod, batch, remat in itertools.product(pods, batches or [config.batch_size], remats or [config.remat]):
        changed = dataclasses.replace(config, batch_size=batch, remat=remat)
        try:
            check_parts(changed, make_mesh(config.mesh_data, config.mesh_model, pod.devices))
        except ValueError as error:
            raise ValueError(f"sweep: on {pod.topology} {one_line(error)}") from error
        points.append(Point(pod, changed))
    return list({point.name: point for point in points}.values())


def sweep(points: list[Point], data, path: Path | None, tell: Callable[[Point], None]) -> Iterator[tuple[Row, bool]]:
    """Plans every point and gives its row as soon as there is one, with whether it was in the file already.

    The file is written after every row: a sweep that was interrupted goes on where it was. Rows of other sweeps stay
    in it; one of the same point by other sources or versions is replaced.

    Args:
        points: from `make_points`.
        data: as of `make_plan`.
        path: of the file; none is kept where there is none.
        tell: is given every point before it is compiled.

    Raises:
        ValueError: the file is damaged or holds something else, what `make_plan` refuses.
    """
    rows = read_rows(path) if path is not None and path.exists() else []
    known = {row.identity: row for row in rows}
    made_with = {"code": digest_of_code(), "tools": tools(), "commit": commit()}
    for point in points:
        row = Row(point.pod.topology, as_json(point.config), **made_with)
        if (found := known.get(row.identity)) is not None:
            yield found, True
            continue
        tell(point)
        try:
            row = dataclasses.replace(row, plan=make_plan(point.config, point.pod, data=data))
        except OutOfMemory as error:
            row = dataclasses.replace(row, refused=one_line(error))
        rows = [old for old in rows if old.point != row.point] + [row]
        if path is not None:
            write_whole(path, json.dumps({"rows": [row.as_dict() for row in rows]}, indent=1) + "\n")
        yield row, False


def read_rows(path: Path) -> list[Row]:
    """The rows that a sweep left in a file.

    Raises:
        ValueError: it is damaged, or another's: it is not to be written over.
        OSError: it cannot be read.
    """
    rows = read_json(path).get("rows")
    try:
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == _FIELDS for row in rows):
            raise ValueError("holds no rows of a sweep")
        return [Row(**row | {"plan": None if row["plan"] is None else Plan.from_dict(row["plan"])}) for row in rows]
    except ValueError as error:
        raise ValueError(f"json {one_line(path)}: {error}: move it, or give another path") from error


def tools() -> dict[str, str | None]:
    """What compiles a plan: versions, `None` where one is not installed, and what its flags are."""
    return {name: version(name) for name in ("jax", "flax", "optax", "libtpu")} | {
        name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    }


def ranked(rows: list[Row]) -> list[Row]:
    """The cheapest recipe first; what does not fit stands last."""
    return sorted(rows, key=lambda row: row.chip_hours)
