"""Tables in Markdown, and the sections of a page that commands write."""

import os
from pathlib import Path

from ge2mst_jax.files import write_whole
from ge2mst_jax.provenance import commit


def markdown(header, rows) -> str:
    """A table.

    >>> print(markdown(["a", "b"], [[1, 2]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in line) + "|" for line in lines)


def hardware() -> str:
    """What it ran on, in words."""
    return f"{os.cpu_count()} CPU cores, commit {commit()}"


def write_section(page, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the page has no such section.
    """
    page = Path(page)
    content = page.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in content or end not in content:
        raise ValueError(f"{page} has no section {begin.strip()} ... {end}")
    before, after = content.partition(begin)[0], content.partition(end)[2]
    write_whole(page, f"{before}{begin}{text}\n{end}{after}")
