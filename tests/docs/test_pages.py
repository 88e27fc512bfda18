"""Every Python block of the README and of each page runs, in order, a page as one program."""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import ge2mst_jax
from ge2mst_jax.train import command
from ge2mst_jax.train.setup import build_model

ROOT = Path(__file__).parents[2]
#: Pages whose blocks need something that a test makes for them.
ELSEWHERE = {"docs/export.md": "tests/convert/test_export.py"}
#: Pages that compile a network.
SLOW = ("docs/tutorials/conversion.md", "docs/tutorials/energy.md")
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: What a block may be in; only Python is run.
LANGUAGES = {"python", "sh", "text"}


def pages() -> list[str]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text())


RUN = [page for page in pages() if page not in ELSEWHERE and any(language == "python" for language, _ in blocks(page))]


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in RUN])
def test_examples_run(page, tmp_path, monkeypatch):
    text = "\n".join(body for language, body in blocks(page) if language == "python")
    if "import equinox" in text and importlib.util.find_spec("equinox") is None:
        pytest.skip("equinox is not installed (make docs)")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, page, "exec"), {})


def test_no_page_is_left_out():
    assert {"README.md", "docs/design.md", "docs/tutorials/layers.md", *SLOW} <= set(RUN)
    for page, test in ELSEWHERE.items():
        assert f'"{page}"' in (ROOT / test).read_text()


@pytest.mark.parametrize("page", pages())
def test_every_block_says_what_it_is(page):
    assert {language for language, _ in blocks(page)} <= LANGUAGES
    assert (ROOT / page).read_text().count("```") == 2 * len(blocks(page))


@pytest.mark.parametrize("page", pages())
def test_commands_name_scripts_and_experiments_that_are_there(page):
    text = (ROOT / page).read_text()
    scripts = set(re.findall(r"(?<!/)experiments/[\w/]+\.(?:py|sh)", text)) - {"experiments/configs/NAME.py"}
    assert {script for script in scripts if not (ROOT / script).is_file()} == set()
    names = set(re.findall(r"experiments/train\.py (\w+)", text)) - {"NAME", "as"}
    assert {name for name in names if not (ROOT / f"experiments/configs/{name}.py").is_file()} == set()


def commands() -> list[tuple[str, str]]:
    """Every command of a script, with its page."""
    lines = [
        (page, line)
        for page in pages()
        for language, body in blocks(page)
        if language == "sh"
        for line in body.replace("\\\n", " ").splitlines()
    ]
    return [(page, line) for page, line in lines if re.search(r"python experiments/\w+\.py", line)]


def test_options_of_commands_are_those_of_the_scripts(monkeypatch, capsys):
    """Each is parsed as it stands, and not run; what one trains is made."""

    def made(options):
        if hasattr(options, "train"):
            build_model(options.train, 10)

    run_command = command.run_command
    monkeypatch.setattr(command, "run_command", lambda main, *rest: run_command(made, *rest))
    monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
    refused = []
    for page, line in commands():
        words = shlex.split(line, comments=True)
        _, script, *_ = given = words[next(i for i, word in enumerate(words) if word.endswith("python")) :]
        monkeypatch.setattr(sys, "argv", given[1:])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                refused.append((page, line, capsys.readouterr().err))
    assert refused == []
    assert len(commands()) > 20


def test_versions_are_one():
    version = ge2mst_jax.__version__  # which setup.cfg reads
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
