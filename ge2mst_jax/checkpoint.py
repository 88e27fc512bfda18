"""One checkpoint on disk: what it says of itself, its arrays, and whether it is proven to be damaged."""

import contextlib
import hashlib
import inspect
import json
import sys
import warnings

import jax
from orbax.checkpoint import v1 as ocp

from ge2mst_jax.checks import cut, one_line
from ge2mst_jax.files import read_json
from ge2mst_jax.folders import files_in, folder, in_bucket, is_folder, read_through

#: The file in which Orbax keeps what a checkpoint says of itself.
METADATA = "_CHECKPOINT_METADATA"
#: How TensorStore's errors begin where what it has read is not what was written.
_DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND")


class CheckpointError(ValueError):
    """A checkpoint that is not there, not ours, or cannot be read or written; the message names it."""


class DamagedError(CheckpointError):
    """A checkpoint that is proven to be damaged: its files can be read, but hold something else than was written."""


def check_path(path):
    """The absolute path of a checkpoint that is to be read or written, as `folder` gives it.

    Raises:
        CheckpointError: links lead in a circle; or Orbax takes a part of it for a pattern (it would find no array
            again, or another folder's), or cannot open it.

    >>> check_path("/runs/a[1]")
    Traceback (most recent call last):
    ge2mst_jax.checkpoint.CheckpointError: /runs/a[1]: checkpoints cannot lie in a path with '[': rename the folder
    """
    path = folder(path)
    try:
        if not in_bucket(path):
            path = path.resolve()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # whoever opens it says
                path.stat()  # from Python 3.13 on, resolve leaves links in a circle as they are
    except (RuntimeError, OSError, ValueError) as error:  # links in a circle, a null character
        raise CheckpointError(f"{one_line(path)}: no path to a checkpoint ({one_line(error)})") from error
    for character in "[]*?\\":
        if character in str(path):
            where = one_line(path)
            raise CheckpointError(f"{where}: checkpoints cannot lie in a path with {character!r}: rename the folder")
    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        raise CheckpointError(f"{one_line(path)}: checkpoints cannot lie in a path that is no UTF-8: rename the folder")
    return path


def seal(about: dict) -> dict:
    """What a checkpoint says of itself, with the SHA-256 by which `read_seal` knows that nothing was changed.

    Raises:
        ValueError: JSON cannot hold it.

    >>> sorted(seal({"b": (1, 2)}))
    ['b', 'sha256']
    """
    try:
        about = json.loads(json.dumps(about))  # as it will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"about must be what JSON can hold: {one_line(error)}") from error
    return about | {"sha256": _digest(about)}


def read_seal(path) -> dict:
    """What a checkpoint says of itself, checked.

    Raises:
        DamagedError: it is no JSON any more, or not what was written.
        CheckpointError: it cannot be read, or was not written by `seal`.
    """
    path = folder(path)
    try:
        about = read_json(path / METADATA).get("custom_metadata")
    except ValueError as error:
        raise DamagedError(f"the checkpoint {one_line(path)} is damaged: {reason(error)}") from error
    except FileNotFoundError as error:
        if is_folder(path):
            raise DamagedError(f"the checkpoint {one_line(path)} is damaged: it has no {METADATA}") from error
        raise CheckpointError(f"no checkpoint at {one_line(path)}") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {one_line(path)} cannot be read: {reason(error)}") from error
    if not isinstance(about, dict) or "sha256" not in about:
        raise CheckpointError(
            f"the checkpoint {one_line(path)} carries no sha256 of what it says of itself: another program or an "
            "earlier version wrote it, or it is damaged; move it away to go on without it"
        )
    if about.pop("sha256") != _digest(about):
        raise DamagedError(f"the checkpoint {one_line(path)} is damaged: {METADATA} is not what was written")
    return about


def load_arrays(path, abstract, name: str | None = None):
    """The arrays of a checkpoint.

    Args:
        path: of the checkpoint.
        abstract: pytree of shapes (and shardings) to load into.
        name: of the part, as Orbax calls it; its default if none.

    Raises:
        DamagedError: the files can be read, and what they hold cannot be what was written.
        CheckpointError: anything else went wrong.
    """
    _hush_late_callbacks()
    tries_left = 2 if in_bucket(path) else 1  # Orbax takes a server that does not answer for a file that is not there
    while True:
        tries_left -= 1
        try:
            return jax.block_until_ready(
                ocp.load(path, abstract, **({} if name is None else {"checkpointable_name": name}))
            )
        except Exception as error:  # Orbax and TensorStore raise whatever their readers meet
            proven = _proves_damage(path, error)
            if proven and tries_left:
                continue
            says = "is damaged" if proven else "cannot be read"
            raise (DamagedError if proven else CheckpointError)(
                f"the checkpoint {one_line(path)} {says}: {reason(error)}"
            ) from error


def reason(error: BaseException) -> str:
    """Why something failed, in one short line: what the operating system said if it did, else the first cause.

    >>> reason(ValueError("two\\nlines"))
    'two lines'
    """
    chain = list(_chain(error))
    last = next((e for e in chain if isinstance(e, OSError)), chain[-1])
    said = (last.strerror if isinstance(last, OSError) else None) or one_line(last) or type(last).__name__
    return cut(said, 200)


def _digest(about: dict) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _chain(error):
    """An error and what caused it, down to the first."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return seen


def _proves_damage(path, error) -> bool:
    """Whether a failed load proves damage: every file can be read, nothing else went wrong, and the error says so."""
    try:
        for file in files_in(path):
            read_through(file)
    except OSError:
        return False
    chain = _chain(error)
    if any(isinstance(e, OSError) and not isinstance(e, FileNotFoundError) for e in chain):
        return False
    said = json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError
    return any(isinstance(e, said) or str(e).startswith(_DAMAGE) for e in chain)


def _hush_late_callbacks() -> None:
    """Leaves out what a failed load still says after its error, in hundreds of tracebacks.

    Orbax closes its event loop while TensorStore's other reads are under way: their callbacks find it closed, and their
    coroutines are never awaited.
    """
    before = sys.unraisablehook
    if getattr(before, "__qualname__", "").startswith(_hush_late_callbacks.__name__):
        return

    def hook(unraisable):
        late = str(unraisable.exc_value) == "Event loop is closed" or inspect.iscoroutine(unraisable.object)
        if not late:
            before(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
