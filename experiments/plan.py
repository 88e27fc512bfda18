"""Plans an experiment on a TPU pod that is not there: the TPU's own compiler says whether it fits and what it costs.

    python experiments/plan.py CONFIG --topology v5e:4x4 [--batch N] [--work train|evaluate|dense|spiking] [--json FILE]
    python experiments/plan.py CONFIG --anchor True              # ResNet-50 and ViT-S/16 beside it
    python experiments/plan.py CONFIG --largest-batch True       # that fits
    python experiments/plan.py CONFIG --sweep True --topologies v5e:4x4 v5e:8x8 --batches 1024 2048 --json FILE

CONFIG is a name of experiments/configs. Needs the compiler (`pip install 'libtpu==0.0.42.1'`), no chip. Compiling takes
minutes. A sweep that was interrupted goes on where it was when the same command is given again. What the figures are
worth: docs/performance.md.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import json
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from train import load_config

from ge2mst_jax.checks import check_whole, one_line
from ge2mst_jax.files import write_whole
from ge2mst_jax.plan import (
    ANCHORS,
    OutOfMemory,
    Row,
    cheapest,
    check_anchors,
    check_work,
    largest_batch,
    largest_table,
    make_anchor,
    make_plan,
    make_points,
    open_topology,
    plan_table,
    read_rows,
    read_topology,
    shape_of,
    sweep,
    sweep_table,
)
from ge2mst_jax.train import TrainConfig
from ge2mst_jax.train.command import run_command

#: Where no topology is given.
TOPOLOGY = "v5e:4x4"


@dataclasses.dataclass(frozen=True)
class Options:
    """Plans an experiment on a TPU pod that is not there."""

    config: tyro.conf.Positional[str]
    """Name of an experiment."""
    topology: str | None = None
    """CHIP:SHAPE of the pod; v5e:4x4 if none."""
    batch: int | None = None
    """Images a step on all chips; the config's if none."""
    neuron: str | None = None
    """Another neuron than the config's, such as relu, to set beside it."""
    work: Literal["train", "evaluate", "dense", "spiking"] = "train"
    """A train step; a batch of evaluation while it trains; or of the deployed network's dense or spiking execution."""
    anchor: bool = False
    """Also plan a train step of ResNet-50 and of ViT-S/16, at the same batch, images and pod."""
    largest_batch: bool = False
    """Look for the largest batch that fits, and plan that one."""
    sweep: bool = False
    """Plan a train step for all combinations of topologies, batches and remats, and name the cheapest."""
    topologies: tuple[str, ...] = ()
    """Of a sweep; v5e:4x4 if none."""
    batches: tuple[int, ...] = ()
    """Of a sweep; the config's if none."""
    remats: tuple[str, ...] = ()
    """Of a sweep: none, or policies of jax.checkpoint; the config's if none."""
    json: Path | None = None
    """Also write the figures to this file; a sweep writes them after every plan, and takes up those it finds."""

    def __post_init__(self):
        clashes = (
            ("sweep", ("topology", "batch", "anchor", "largest_batch")),
            ("largest_batch", ("batch", "anchor")),
        )
        for one, others in clashes:
            for other in others:
                if getattr(self, one) and getattr(self, other) not in (None, False):
                    says = {"topology": ": give topologies", "batch": ": give batches"} if one == "sweep" else {}
                    raise ValueError(f"{one} and {other} contradict each other{says.get(other, '')}")
        for one in ("sweep", "anchor"):
            if getattr(self, one) and self.work != "train":
                raise ValueError(f"{one} and work {self.work} contradict each other: {one} plans train steps")
        for name in ("topologies", "batches", "remats"):
            if getattr(self, name) and not self.sweep:
                raise ValueError(f"{name} are of a sweep: add --sweep True")
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"json is {one_line(self.json)}: there is no folder {one_line(self.json.parent)}")
        if self.json is not None and self.json.is_dir():
            raise ValueError(f"json is {one_line(self.json)}: that is a folder")


def chosen(options: Options) -> TrainConfig:
    """The config that is planned, before what a sweep changes."""
    config = load_config(options.config)
    if options.batch is not None:
        config = dataclasses.replace(config, batch_size=check_whole("batch", options.batch, 1, 2**24))
    if options.neuron is not None:
        config = dataclasses.replace(config, neuron=options.neuron)
    check_work(config, options.work)
    return config


def say(console: Console, line: str) -> None:
    console.print(one_line(line), soft_wrap=True, highlight=False, markup=False)


def said(row: Row) -> str:
    """Of a row of a sweep, in a line."""
    if row.plan is None:
        return row.refused
    return f"{1e3 * row.plan.seconds:.1f} ms a step by cycles, compiled in {row.plan.compile_seconds:.0f} s"


def plan_sweep(options: Options, config: TrainConfig, data, console: Console) -> None:
    topologies = dict.fromkeys(options.topologies or [TOPOLOGY])
    for batch in options.batches:
        check_whole("batches", batch, 1, 2**24)
    for remat in options.remats:
        dataclasses.replace(config, remat=remat)
    for topology in topologies:
        read_topology(topology)
    if options.json is not None and options.json.exists():
        read_rows(options.json)
    points = make_points(config, [open_topology(topology) for topology in topologies], options.batches, options.remats)
    rows = []
    with console.status("") as status:
        for row, kept in sweep(
            points, data, options.json,
            lambda point: status.update(f"{len(rows) + 1} of {len(points)}: compiling for {point.name}, minutes"),
        ):  # fmt: skip
            rows.append(row)
            place = f"{len(rows)} of {len(points)}: {points[len(rows) - 1].name}"
            say(console, f"{place}: {said(row)}{', was in the file' if kept else ''}")
    console.print(sweep_table(options.config, rows))
    say(console, cheapest(rows))


def plan_pod(options: Options, config: TrainConfig, data, console: Console) -> dict:
    """Plans of one pod on the console; the figures."""
    pod = open_topology(options.topology or TOPOLOGY)
    what = f"compiling {{}} for {len(pod.devices)} chips, minutes"
    with console.status(what.format(options.config)) as status:
        if options.largest_batch:
            found = largest_batch(config, pod, options.work, data, lambda line: status.update(what.format(line)))
            console.print(largest_table(found, pod.chip.hbm))
            if found.plan is None:
                return {"largest_batch": found.as_dict()}
            plans, extra = {options.config: found.plan}, {"largest_batch": found.as_dict()}
        else:
            plans, extra = {options.config: make_plan(config, pod, options.work, data)}, {}
        for name in ANCHORS if options.anchor else ():
            status.update(what.format(name))
            try:
                plans[name] = make_anchor(name, config, pod, data)
            except OutOfMemory as error:
                say(console, f"{name}: {error}")
    console.print(plan_table(plans))
    if options.anchor:
        extra = {"anchors": {name: plans[name].as_dict() for name in ANCHORS if name in plans}}
    return plans[options.config].as_dict() | extra


def main(options: Options) -> None:
    config, console = chosen(options), Console()
    data = shape_of(config)
    if options.sweep:
        plan_sweep(options, config, data, console)
        return
    read_topology(options.topology or TOPOLOGY)
    if options.anchor:
        check_anchors(data[0])
    found = plan_pod(options, config, data, console)
    if options.json is not None:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main, Options)
