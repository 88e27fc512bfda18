"""Files that are there whole or not at all, and JSON that is what it should be."""

import json
import os

from ge2mst_jax.checks import one_line
from ge2mst_jax.folders import folder, in_bucket, put, read


def write_whole(path, content: bytes | str) -> None:
    """Writes a file under a temporary name beside it, then renames it; in a bucket at once, which is the same there.

    Args:
        path: of the file; replaced if it is there.
        content: bytes, or text that becomes UTF-8.

    >>> import tempfile
    >>> path = folder(tempfile.mkdtemp()) / "a.txt"
    >>> write_whole(path, "whole")
    >>> path.read_text(), [file.name for file in path.parent.iterdir()]
    ('whole', ['a.txt'])
    """
    path, content = folder(path), content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        put(path, content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: the file is no JSON (empty, cut off, binary), or holds no object; names the file.
        OSError: it cannot be read.

    >>> import tempfile
    >>> path = folder(tempfile.mkdtemp()) / "a.json"
    >>> write_whole(path, "[]")
    >>> read_json(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ...a.json: damaged (holds a list, not a JSON object)
    """
    try:
        found = json.loads(read(folder(path)))
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise ValueError(f"{path}: damaged ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged (holds a {type(found).__name__}, not a JSON object)")
    return found
