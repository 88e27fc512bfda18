"""Checkpoints of a run: state, step, data iterator and config; written whole, in the background, the best kept."""

import contextlib
import fcntl
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from ge2mst_jax.convert.storage import CheckpointError, first_line

log = logging.getLogger(__name__)
policies = ocp.training.preservation_policies


class Checkpoints:
    """A run's checkpoints in `RUN/checkpoints/STEP`; a context manager, which waits for the last save.

    A save is atomic (Orbax writes beside the final name, then renames) and runs in the background. Kept are the
    `keep` latest and the one with the highest `accuracy`.
    """

    def __init__(self, run_dir: Path, keep: int = 2):
        self.directory = Path(run_dir).resolve() / "checkpoints"
        self._keep = keep
        self._open()

    def _open(self):
        best = policies.BestN(get_metric_fn=lambda m: m["accuracy"], n=1, keep_checkpoints_without_metrics=False)
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there, ascending."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, step: int, state, about: dict, accuracy: float | None = None) -> None:
        """Starts to save; waits first for the save before it.

        Args:
            step: number of steps done.
            state: pytree of arrays; copied before this returns, so it may be donated.
            about: what else restores the run, as JSON.
            accuracy: of the evaluation at this step, if there was one.
        """
        if step in self.steps:
            return
        if jax.default_backend() == "cpu":  # a host copy of a CPU array is the array itself, which the next step reuses
            state = jax.tree.map(jnp.copy, state)
        metrics = None if accuracy is None else {"accuracy": accuracy}
        self._orbax.save_async(step, state, force=True, metrics=metrics, custom_metadata=about)

    def wait(self) -> None:
        """Until what is being saved is there."""
        self._orbax.wait()

    def restore_latest(self, abstract_state):
        """`(step, state, about)` of the latest checkpoint that can be read, or `None` where there is none.

        A damaged one is set aside in `RUN/damaged/` and the one before it is taken, with a warning.

        Args:
            abstract_state: shapes and shardings to restore into; another mesh or process count than it was saved
                from is fine.
        """
        for step in reversed(self.steps):
            try:
                return step, *self.restore(step, abstract_state)
            except CheckpointError as error:
                log.warning("%s; falling back to the one before", error)
                self._set_aside(step)
        return None

    def restore(self, step: int, abstract_state):
        """`(state, about)` of one checkpoint.

        Raises:
            CheckpointError: it is not there or cannot be read.
        """
        path = self.directory / str(step)
        try:
            about = self._orbax.metadata(step).custom_metadata
            state = self._orbax.load(step, abstract_state)
            jax.block_until_ready(state)
        except Exception as error:  # Orbax and TensorStore raise whatever their readers meet
            raise CheckpointError(f"the checkpoint {path} cannot be read: {first_line(error)}") from error
        if not about:
            raise CheckpointError(f"the checkpoint {path} is not one of a training run")
        return state, about

    def _set_aside(self, step):
        damaged = self.directory.parent / "damaged"
        if jax.process_index() == 0:
            damaged.mkdir(exist_ok=True)
            number = len(list(damaged.iterdir()))
            (self.directory / str(step)).rename(damaged / f"{step}.{number}")
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("set aside a damaged checkpoint")
        self._orbax.close()
        self._open()


@contextlib.contextmanager
def exclusive(run_dir: Path):
    """Holds a run's folder; a second run in it is refused.

    Raises:
        ValueError: another process holds it.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() != 0:
        yield
        return
    with open(run_dir / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing to {run_dir}: give this one a folder of its own") from None
        yield


def read_about(run_dir: Path, which: int | str = "best") -> tuple[Path, dict]:
    """The folder of a run's checkpoint and what it says of itself, without its arrays.

    Args:
        run_dir: of the run.
        which: a step, `"latest"`, or `"best"`: the highest accuracy; the latest where none was evaluated.

    Raises:
        CheckpointError: no run, no such checkpoint, or an unreadable one.
    """
    folder = Path(run_dir).resolve() / "checkpoints"
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise CheckpointError(f"no checkpoint of a run in {run_dir}: give the folder that a training run wrote")
    try:
        about = {step: ocp.metadata(folder / str(step)).custom_metadata or {} for step in steps}
    except Exception as error:
        raise CheckpointError(f"the checkpoints in {folder} cannot be read: {first_line(error)}") from error
    if which == "best":
        chosen = max(steps, key=lambda s: (about[s].get("accuracy") or -1.0, s))
    else:
        chosen = steps[-1] if which == "latest" else int(which)
    if chosen not in steps:
        raise CheckpointError(f"no checkpoint of step {chosen} in {run_dir}: there are {', '.join(map(str, steps))}")
    if "config" not in about[chosen]:
        raise CheckpointError(f"the checkpoint {folder / str(chosen)} is not one of a training run")
    return folder / str(chosen), about[chosen]


def read_state(path: Path, abstract_state):
    """The arrays of one checkpoint, into the shapes and shardings of `abstract_state`."""
    try:
        return ocp.load(path, abstract_state, checkpointable_name="state")
    except Exception as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {first_line(error)}") from error


def check_same_run(before: dict, now: dict, may_differ) -> None:
    """Refuses to go on with a run under another config.

    Raises:
        ValueError: names the first field that differs.
    """
    for field in sorted(set(before) | set(now)):
        if field not in may_differ and before.get(field) != now.get(field):
            was, new = (json.dumps(fields.get(field)) for fields in (before, now))
            raise ValueError(
                f"the run in this folder has {field} {was}, not {new}: go on with the same, or give another folder"
            )
