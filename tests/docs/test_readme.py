"""Every Python example of the README runs, in order, as one program."""

import re
from pathlib import Path

import pytest

PAGES = [Path(__file__).parents[2] / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page):
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert examples
    exec(compile("\n".join(examples), page.name, "exec"), {})
