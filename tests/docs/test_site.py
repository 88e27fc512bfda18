"""The site is built strictly, and every link and picture inside it is there, anchors too."""

import importlib
import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in ROOT.glob("ge2mst_jax/*/__init__.py"))


class Page(HTMLParser):
    """Where a page can be entered, what it links to, what it loads from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = {"", "__"}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.anchors |= {attrs.get("id", ""), attrs.get("name", "")}
        target = attrs.get("href", attrs.get("src"))
        if target is None or "preconnect" in attrs.get("rel", ""):
            return
        (self.links if tag == "a" else self.loaded).append(target)


def dead(page: Path, target: str, pages: dict[Path, Page]) -> bool:
    """Whether a link of a page leads nowhere in the site."""
    parts = urlsplit(target)
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if path.is_dir():
        path = path / "index.html"
    if not path.exists():
        return True
    return path in pages and unquote(parts.fragment) not in pages[path].anchors


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed (make docs)")
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return {path: Page(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_every_link_inside_the_site_resolves(site):
    found = [
        f"{page.name}: {target}"
        for page, parsed in site.items()
        for target in parsed.links + parsed.loaded
        if not urlsplit(target).scheme and dead(page, target, site)
    ]
    assert found == []
    assert sum(len(parsed.links) for parsed in site.values()) > 1000


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    assert {target for parsed in site.values() for target in parsed.loaded if urlsplit(target).netloc} == set()


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_function_and_class(site, room):
    (page,) = (path for path in site if path.parts[-2:] == ("reference", f"{room}.html"))
    module = importlib.import_module(f"ge2mst_jax.{room}")
    # A function may have the name of the file that it is in.
    missing = [
        name
        for name in module.__all__
        if callable(getattr(module, name))
        and not site[page].anchors & {f"ge2mst_jax.{room}.{name}", f"ge2mst_jax.{room}.{name}.{name}"}
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("target", "leads_nowhere"),
    [
        ("a.html", False),
        ("a.html#x", False),
        ("a.html#y", True),
        ("#x", True),
        ("b.html", True),
        ("sub/../a.html", False),
    ],
)
def test_a_dead_link_is_found(tmp_path, target, leads_nowhere):
    (tmp_path / "a.html").write_text('<h1 id="x">x</h1>')
    (tmp_path / "sub").mkdir()
    page = tmp_path / "page.html"
    pages = {tmp_path / "a.html": Page('<h1 id="x">x</h1>'), page: Page("")}
    assert dead(page, target, pages) == leads_nowhere
