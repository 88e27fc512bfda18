"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path, content: bytes | str) -> None:
    """Writes a file under a temporary name beside it, then renames it.

    Args:
        path: of the file; replaced if it is there.
        content: bytes, or text that becomes UTF-8.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_whole(path, "whole")
    >>> path.read_text(), [file.name for file in path.parent.iterdir()]
    ('whole', ['a.txt'])
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
