"""Checkpoints of a run: state, step, data iterator and config; written whole, in the background, the best kept."""

import contextlib
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from ge2mst_jax.checkpoint import CheckpointError, DamagedError, check_path, load_arrays, read_seal, reason, seal
from ge2mst_jax.checks import check_whole, cut, one_line, shown
from ge2mst_jax.folders import is_unfinished, make, move, names_in
from ge2mst_jax.train.fingerprint import describe, fingerprints
from ge2mst_jax.train.processes import largest

log = logging.getLogger(__name__)
policies = ocp.training.preservation_policies

#: What a run's checkpoint says of itself, at least.
SAID = frozenset("config data image_shape classes examples step best_step fingerprints".split())
_TEMPORARY = ".orbax-checkpoint-tmp"


class Checkpoints:
    """A run's checkpoints in `RUN/checkpoints/STEP`; a context manager, which waits for the last save.

    A save is atomic (Orbax writes beside the final name, then renames; in a bucket it writes a mark at the end) and
    runs in the background. Kept are the `keep` latest and that of step `best`.
    """

    def __init__(self, run_dir: Path, keep: int = 2):
        self.directory = check_path(run_dir) / "checkpoints"
        self.best: int | None = None
        """Step of the best checkpoint so far, if any was evaluated: it is kept."""
        self._keep, self._saving, self._orbax = check_whole("keep", keep, 1, 10**6), None, None

    def _open(self):
        """Orbax's own view of the folder, which it needs to write: made once what is damaged has been set aside."""
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), _Best(self)]),
                cleanup_tmp_directories=True,
            )
        except Exception as error:  # whatever it meets in the folder
            raise CheckpointError(f"the checkpoints in {one_line(self.directory)}: {reason(error)}") from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.wait()
        finally:
            if self._orbax is not None:
                with contextlib.suppress(Exception):  # what `wait` has said already, or less than what ended the run
                    self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there, ascending."""
        return steps_in(self.directory)

    def save(self, step: int, state, about: dict) -> None:
        """Starts to save; waits first for the save before it.

        Args:
            step: number of steps done.
            state: pytree of arrays; copied before this returns, so it may be donated.
            about: what else restores the run, as JSON; `step`, `best_step` and the arrays' `fingerprints` are added.

        Raises:
            CheckpointError: this checkpoint, or the one before it, cannot be written.
        """
        if self._orbax is None:
            self._open()
        self.wait()
        if step in self.steps:
            return
        about = seal(about | {"step": step, "best_step": self.best, "fingerprints": fingerprints(state)})
        if jax.default_backend() == "cpu":  # a host copy of a CPU array is the array itself, which the next step reuses
            state = jax.tree.map(jnp.copy, state)
        with self._writing(step):
            self._saving = step, self._orbax.save_async(step, state, force=True, custom_metadata=about)

    def wait(self) -> None:
        """Until what is being saved is there.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._saving is not None:
            (step, response), self._saving = self._saving, None
            with self._writing(step):
                response.result()  # Orbax ends the save's thread and event loop here alone

    @contextlib.contextmanager
    def _writing(self, step):
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise whatever their writers meet
            raise CheckpointError(
                f"the checkpoint {one_line(self.directory / str(step))} cannot be written: {reason(error)}"
            ) from error

    def restore_latest(self, abstract_state, check=lambda about: None):
        """`(step, state, about)` of the latest checkpoint, or `None` where there is none.

        One that is proven to be damaged is set aside in `RUN/damaged/` and the one before it is taken, with a warning.

        Args:
            abstract_state: shapes and shardings to restore into; another mesh or process count than it was saved
                from is fine.
            check: is given what a checkpoint says of itself before its arrays are read; raises where it may not be
                gone on with.

        Raises:
            CheckpointError: one can't be read for another reason than damage, or every one is damaged; nothing is
                touched.
            ValueError: it is another run's.
        """
        damaged = []
        for step in reversed(self.steps):
            try:
                about = read_run(self.directory / str(step))
                check(about)
                found = step, self._agreed(step, about, abstract_state), about
            except DamagedError as error:
                log.warning("%s; falling back to the one before", error)
                damaged.append(step)
                continue
            self._set_aside(damaged)
            self._open()
            self.best = about["best_step"]
            if self.best is not None and self.best not in self.steps:
                log.warning("the best checkpoint, of step %d, is gone from %s", self.best, self.directory)
            return found
        if damaged:
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in {one_line(self.directory)} can be read: put copies of them "
                "in their place, or give another folder to start anew"
            )
        self._open()
        return None

    def _agreed(self, step, about, abstract_state):
        """One checkpoint's arrays; damaged for every process if for one, unreadable likewise."""
        path = self.directory / str(step)
        state = error = None
        try:
            state = read_arrays(path, about, abstract_state)
        except ValueError as raised:
            error = raised
        outcome = largest(0 if error is None else 1 if isinstance(error, DamagedError) else 2)
        if outcome == 0:
            return state
        if error is None or (outcome == 2 and isinstance(error, DamagedError)):
            kind = DamagedError if outcome == 1 else CheckpointError
            error = kind(f"the checkpoint {one_line(path)} cannot be read by another process")
        raise error

    def restore(self, step: int, abstract_state):
        """`(state, about)` of one checkpoint.

        Raises:
            CheckpointError: it is not there or cannot be read; a `DamagedError` if it is proven to be damaged.
            ValueError: its arrays have other shapes.
        """
        about = read_run(self.directory / str(step))
        return read_arrays(self.directory / str(step), about, abstract_state), about

    def _set_aside(self, steps):
        damaged = self.directory.parent / "damaged"
        if steps and jax.process_index() == 0:
            make(damaged)
            for step in steps:
                number = len(names_in(damaged))
                move(self.directory / str(step), damaged / f"{step}.{number}")
        largest(0)  # no process lists the folder before


class _Best:
    """Keeps the best checkpoint."""

    def __init__(self, owner: Checkpoints):
        self._owner = owner

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step == self._owner.best for checkpoint in checkpoints]


def steps_in(directory) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; what Orbax has not finished is passed over.

    Raises:
        CheckpointError: something there is no checkpoint by its name (a checkpoint that was renamed, perhaps), or the
            folder cannot be read.
    """
    try:
        names = [n for n in names_in(directory) if not n.startswith(".") and _TEMPORARY not in n]
        names = [name for name in names if not is_unfinished(directory / name)]
    except OSError as error:
        raise CheckpointError(f"the checkpoints in {one_line(directory)} cannot be read: {reason(error)}") from error
    for name in names:
        if not (name.isascii() and name.isdigit() and str(int(name)) == name):
            raise CheckpointError(
                f"{one_line(directory / name)} is no checkpoint by its name: name it by its step, or move it away"
            )
    return sorted(map(int, names))


def read_run(path: Path) -> dict:
    """What a run's checkpoint says of itself.

    Raises:
        CheckpointError: it is not one of a run, or cannot be read; a `DamagedError` if it is proven to be damaged.
    """
    about = read_seal(path)
    missing = sorted(SAID - set(about))
    if missing:
        raise CheckpointError(f"the checkpoint {one_line(path)} is not one of a training run: it has no {missing[0]!r}")
    if str(about["step"]) != path.name:
        raise CheckpointError(
            f"the checkpoint {one_line(path)} is of step {about['step']}: name it so, or move it away"
        )
    return about


def read_arrays(path: Path, about: dict, abstract_state):
    """The arrays of a run's checkpoint, checked against the fingerprints that `about` holds.

    Raises:
        ValueError: they have other names, types or shapes than `abstract_state`.
        CheckpointError: they cannot be read; a `DamagedError` if they are proven to be damaged.
    """
    expected, now = about["fingerprints"], describe(abstract_state)
    for name in sorted(set(expected) | set(now)):
        before = expected[name].split(" ")[0] if name in expected else "absent"
        if before != now.get(name, "absent"):
            raise ValueError(f"the checkpoint {one_line(path)} has {name} {before}, not {now.get(name, 'absent')}")
    state = load_arrays(path, abstract_state, "state")
    changed = [name for name, found in fingerprints(state).items() if found != expected[name]]
    if changed:
        raise DamagedError(f"the checkpoint {one_line(path)} is damaged: {changed[0]} is not what was written")
    return state


def read_about(run_dir: Path, which: int | str = "best") -> tuple[Path, dict]:
    """The folder of a run's checkpoint and what it says of itself, without its arrays.

    Args:
        run_dir: of the run.
        which: a step, `"latest"`, or `"best"`: the highest accuracy; the latest where none was evaluated.

    Raises:
        CheckpointError: no run, no such checkpoint, or an unreadable one.
    """
    whole = isinstance(which, int) and not isinstance(which, bool)
    if not whole and which not in ("latest", "best"):
        raise ValueError(f"which is {shown(which)}: it must be a step, 'latest' or 'best'")
    directory = check_path(run_dir) / "checkpoints"
    steps = steps_in(directory)
    if not steps:
        raise CheckpointError(
            f"no checkpoint of a run in {one_line(run_dir)}: give the folder that a training run wrote"
        )
    known = f"there are {', '.join(map(str, steps))}"
    if isinstance(which, str):
        about = read_run(directory / str(steps[-1]))
        best = about["best_step"] if which == "best" else None
        if best is not None and best not in steps:
            raise CheckpointError(
                f"the best checkpoint, of step {best}, is not in {one_line(directory)}: name the step to take ({known})"
            )
        which = steps[-1] if best is None else best
    elif which not in steps:
        raise CheckpointError(f"no checkpoint of step {which} in {one_line(run_dir)}: {known}")
    return directory / str(which), read_run(directory / str(which))


def read_state(path: Path, abstract_state):
    """The arrays of one checkpoint, into the shapes and shardings of `abstract_state`; raises as `read_arrays` does."""
    return read_arrays(path, read_run(path), abstract_state)


def check_same_run(before: dict, now: dict, may_differ=frozenset()) -> None:
    """Refuses to go on with a run under another config, or on other data.

    Raises:
        ValueError: names the first field that differs.

    >>> check_same_run({"classes": ["cat", "dog"]}, {"classes": ["ant", "cat", "dog"]})
    Traceback (most recent call last):
    ValueError: the run in this folder has 2 classes, not 3 (new: ant): go on with the same, or give another folder
    """
    for field in sorted(set(before) | set(now)):
        if field in may_differ or before.get(field) == now.get(field):
            continue
        if field == "classes":
            said = _classes_differ(before[field], now[field])
        else:
            said = "{} {}, not {}".format(field, *(cut(json.dumps(f.get(field)), 200) for f in (before, now)))
        raise ValueError(f"the run in this folder has {said}: go on with the same, or give another folder")


def _classes_differ(before, now) -> str:
    changes = {"new": [c for c in now if c not in before], "gone": [c for c in before if c not in now]}
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in changes.items() if names) or "in another order"
    return f"{len(before)} classes, not {len(now)} ({cut(one_line(said), 200)})"
