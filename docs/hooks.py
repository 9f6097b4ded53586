"""What mkdocs does not do by itself: pages for files outside docs/, and links between all of them.

The documents link to each other as the repository has them, `README.md` at its root. On the site the README is the home
page, and a file outside docs/ that a document links to has a page of its own: Markdown as it is, notebooks cell by
cell, other text as a block.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\(|src=\")([^)\s\"#]+)")
"""The target of a link or picture, without its anchor."""
LINKING = (".md", ".ipynb")
"""Endings of files whose links are followed."""
LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".yaml": "yaml"}
"""Ending -> how a source file is coloured."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for the README, and for each file outside docs/ that a document links to."""
    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(_page(path, config))
        for target in _targets(path) if path.endswith(LINKING) else ():
            if not target.startswith("docs/") and target not in seen and (ROOT / target).is_file():
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead to where their targets are on the site."""
    path = _path(page.file.src_uri)
    if not path.endswith(LINKING):
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if "://" in match[2] or not (ROOT / target).exists():
            return match[0]
        return match[1] + posixpath.relpath(_place(target), folder or ".")

    return LINK.sub(replace, markdown)


def _targets(path: str) -> list[str]:
    """Files of the repository that a document links to, by their paths from its root."""
    text = (ROOT / path).read_text(encoding="utf-8")
    folder = posixpath.dirname(path)
    return [posixpath.normpath(posixpath.join(folder, match[2])) for match in LINK.finditer(text)]


def _place(path: str) -> str:
    """Where a file of the repository is among the sources of the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".md") else f"source/{path}.md"


def _path(place: str) -> str:
    """The file of the repository that a page is made of."""
    if place == "index.md":
        return "README.md"
    if place.startswith("source/"):
        return place.removeprefix("source/").removesuffix(".md")
    return place if (ROOT / place).is_file() else f"docs/{place}"


def _page(path: str, config: MkDocsConfig) -> File:
    """The page of a file outside docs/."""
    if path.endswith(".md"):
        return File.generated(config, _place(path), abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        return File.generated(config, _place(path), content=_notebook(json.loads(text)))
    language = LANGUAGES.get(Path(path).suffix, "text")
    head = "---\nsearch:\n  exclude: true\n---\n"
    return File.generated(config, _place(path), content=f"{head}# {path}\n\n````{language}\n{text}\n````\n")


def _notebook(content: dict[str, Any]) -> str:
    """A notebook as Markdown, without outputs."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"````python\n{text}\n````" for kind, text in cells)
