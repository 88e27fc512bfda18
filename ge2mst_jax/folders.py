"""Where a run lies: a folder on a disk, or one in a bucket (gs://). What differs between the two is here.

A bucket has objects, no folders: an object is written whole or not at all, is never appended to and never renamed. Its
paths are those of `etils.epath`, on which Orbax goes on; `gcsfs` reads and writes.
"""

import contextlib
import errno
import importlib.util
import os
import posixpath
import re
import shutil
from pathlib import Path, PurePath

from etils import epath

from ge2mst_jax.checks import one_line

#: What Orbax writes last into a checkpoint in a bucket, where nothing can be renamed: without it, it is not whole.
MARK = "commit_success.txt"

_SCHEME = re.compile("(gs|s3|s3a|az|abfss?|hdfs|hf|https?|ftp|file):(/+|$)")


def folder(path, name: str = "path"):
    """A folder that is to be read or written, as `address` gives it.

    Raises:
        ValueError: as `address`; or it is in a bucket and `gcsfs` is not installed.
    """
    found = address(path, name)
    if in_bucket(found):
        if importlib.util.find_spec("gcsfs") is None:
            what = f"{name} is {one_line(found)}"
            raise ValueError(f"{what}: a bucket needs gcsfs: pip install gcsfs (or this package's extra 'bucket')")
        _prepare()
    return found


def address(path, name: str = "path"):
    """A folder on a disk as a `pathlib.Path`, one in a bucket as an `epath.Path`, of which a `Path` loses a slash.

    Args:
        path: of either, as text or as a path.
        name: of the option that it is, for the error.

    Raises:
        ValueError: another kind of address; a bucket without a folder in it.

    >>> address("runs/a"), address(Path("s3://bucket/run"), "run_dir")
    Traceback (most recent call last):
    ValueError: run_dir is s3://bucket/run: of buckets only gs:// is known; mount it, or use a disk that all hosts share
    """
    text = os.fspath(path) if isinstance(path, PurePath) else str(path)
    found = _SCHEME.match(text)
    if found is None:
        return Path(path)
    text = f"{found[1]}://{text[found.end() :]}".rstrip("/")
    said = f"{name} is {one_line(text)}"
    if found[1] != "gs":
        raise ValueError(f"{said}: of buckets only gs:// is known; mount it, or use a disk that all hosts share")
    bucket, _, inside = text.removeprefix("gs://").partition("/")
    if not bucket or not inside or ".." in inside.split("/"):
        raise ValueError(f"{said}: name a folder in a bucket, such as gs://bucket/runs/a, without '..'")
    return epath.Path(text)


def as_folders(options, *names: str) -> None:
    """Makes fields of a frozen dataclass what `folder` makes of them, where they are not none."""
    for name in names:
        if getattr(options, name) is not None:
            object.__setattr__(options, name, folder(getattr(options, name), name))


def check_mounted(name: str, path) -> None:
    """Refuses a bucket where files of data are read, which must be on a disk.

    Raises:
        ValueError: says what to do.
    """
    found = _SCHEME.match(str(path))
    if found is not None:
        text = f"{found[1]}://{str(path)[found.end() :]}"
        raise ValueError(
            f"{name} is {one_line(text)}: data are not read from a bucket: mount it read-only (gcsfuse), or copy it to "
            "a disk"
        )


def in_bucket(path) -> bool:
    """Whether what `folder` gave lies in a bucket.

    >>> in_bucket(folder("runs/a"))
    False
    """
    return str(path).startswith("gs://")


def _prepare() -> None:
    """Before the first use: nothing is listed from memory, and one way to the bucket, whatever else is installed."""
    import fsspec

    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks for the kind of bucket at every step
    os.environ.setdefault("EPATH_USE_TF", "false")
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def _files():
    """The client of all buckets."""
    import fsspec

    return fsspec.filesystem("gcs")


@contextlib.contextmanager
def _asking(path):
    """Whatever the client's four libraries raise, as an `OSError` that names the path; absence stays what it is."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except Exception as error:
        raise OSError(errno.EIO, one_line(error) or type(error).__name__, str(path)) from error


def make(path) -> None:
    """Makes a folder and those above it; of a bucket, which has none, it is enough that it is there.

    Raises:
        OSError: it cannot be made; there is no such bucket.
    """
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)
        return
    bucket = f"gs://{path.parts[2]}"
    try:
        with _asking(bucket):
            _files().info(bucket)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "there is no such bucket", bucket) from None


def names_in(path) -> list[str]:
    """Names of what lies in a folder, in order; none where there is no such folder.

    >>> names_in(folder("/no/such/folder"))
    []
    """
    if not in_bucket(path):
        return sorted(os.listdir(path)) if os.path.lexists(path) else []
    try:
        with _asking(path):
            found = _files().ls(str(path), detail=False)
    except FileNotFoundError:
        return []
    here = str(path).removeprefix("gs://")
    return sorted(posixpath.basename(name.rstrip("/")) for name in found if name.rstrip("/") != here)


def is_folder(path) -> bool:
    """Whether there is such a folder."""
    return bool(names_in(path)) if in_bucket(path) else path.is_dir()


def is_unfinished(path) -> bool:
    """Whether a folder is a part of what Orbax was to write there; on a disk it gets its name when it is whole."""
    return in_bucket(path) and not exists(path / MARK)


def exists(path) -> bool:
    """Whether there is such a file or folder."""
    if not in_bucket(path):
        return path.exists()
    with _asking(path):
        return _files().exists(str(path))


def files_in(path):
    """Paths of all files below a folder.

    Raises:
        OSError: a folder cannot be read.
    """
    if in_bucket(path):
        with _asking(path):
            yield from (epath.Path(f"gs://{name}") for name in _files().find(str(path)))
        return
    for above, _, names in os.walk(path, onerror=_raise):
        yield from (Path(above) / name for name in names)


def _raise(error):
    raise error


def read(path) -> bytes:
    """What a file holds."""
    if not in_bucket(path):
        return path.read_bytes()
    with _asking(path):
        return _files().cat_file(str(path))


def read_through(path) -> None:
    """Reads a file to its end, a piece at a time.

    Raises:
        OSError: it cannot be read.
    """
    if in_bucket(path):
        read(path)
        return
    with path.open("rb") as file:
        while file.read(2**20):
            pass


def put(path, content: bytes) -> None:
    """Writes an object of a bucket: readers see what was there before, or all of this."""
    with _asking(path):
        _files().pipe_file(str(path), content)


def move(path, target) -> None:
    """Gives a folder another name; in a bucket by copies, such that one of the two is whole whenever this ends."""
    if not in_bucket(path):
        path.rename(target)
        return
    names = [str(file)[len(str(path)) + 1 :] for file in files_in(path)]
    with _asking(path):
        for name in sorted(names, key=lambda name: name == MARK):
            _files().cp_file(f"{path}/{name}", f"{target}/{name}")
    remove(path)


def remove(path) -> None:
    """Removes a folder with all that it holds; from then on it is not whole."""
    if not in_bucket(path):
        shutil.rmtree(path)
        return
    with _asking(path), contextlib.suppress(FileNotFoundError):
        if _files().exists(f"{path}/{MARK}"):
            _files().rm_file(f"{path}/{MARK}")
        _files().rm(str(path), recursive=True)


def sync(path, deep: bool = True) -> None:
    """Until a folder, and what it holds if `deep`, is on the disk; what is in a bucket is there."""
    if in_bucket(path):
        return
    for name in [path, *(path.rglob("*") if deep else ())]:
        file = os.open(name, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
