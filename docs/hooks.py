"""Hooks of MkDocs: pages of the repository's root are pages of the site, and links to its files resolve there."""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
#: Files of the root that are pages, each of one text for both.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the root's pages, and a page for each file of the repository that a page links to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    pages = [file for file in files if file.is_documentation_page()]
    for path in sorted({path for page in pages for path in linked(page.content_string, source_of(page.src_uri))}):
        text = (ROOT / path).read_text()
        language = {".py": "python", ".sh": "sh", ".md": "markdown"}.get(posixpath.splitext(path)[1], "text")
        content = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n`````{language}\n{text}\n`````\n"
        files.append(File.generated(config, page_of(path), content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to the repository's files lead to their pages."""
    source = source_of(page.file.src_uri)

    def resolved(link):
        path = within(source, link[2])
        if path is None or not (ROOT / path).exists():
            return link[0]
        target = posixpath.relpath(page_of(path), posixpath.dirname(page.file.src_uri))
        return f"{link[1]}{target}{link[3] or ''})"

    return LINK.sub(resolved, markdown)


def linked(text, source):
    """Files of the repository outside of docs/ that a text links to, by their paths from the root."""
    found = (within(source, link[2]) for link in LINK.finditer(text))
    return {path for path in found if path and (ROOT / path).is_file() and page_of(path).startswith("files/")}


def within(source, target):
    """The path from the root of what a file links to; `None` for what lies outside of it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return None if path.startswith("..") or os.path.isabs(path) else path


def source_of(page):
    """Where a page's text lies, from the root."""
    return next((name for name, uri in PAGES.items() if uri == page), f"docs/{page}")


def page_of(path):
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"files/{path}.md")
