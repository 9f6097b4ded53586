"""The frame of a self-contained page: styles that follow light and dark, pictures inside the file, no script."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --line0: #1663b8; --line1: #c2510b; --line2: #2a7d2a; --line3: #8a3fa0; }
@media (prefers-color-scheme: dark) {
  :root { --line0: #79b4f5; --line1: #f5a25d; --line2: #7ecf7e; --line3: #cf9be0; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 0; } figcaption { font-size: .85rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem .75rem; }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 2px; }
.pair { display: grid; grid-template-columns: repeat(2, 1fr); gap: 2px; }
.sets { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
img { width: 100%; image-rendering: pixelated; background: #fff; display: block; }
svg { width: 100%; height: auto; max-width: 40rem; } svg text { font-size: 11px; fill: currentColor; }
.grid { stroke: currentColor; opacity: .2; } .line { fill: none; stroke-width: 2; }
.line0 { stroke: var(--line0); } .line1 { stroke: var(--line1); } .line2 { stroke: var(--line2); }
.line3 { stroke: var(--line3); }
.legend span { margin-right: 1rem; font-size: .85rem; border-bottom: 2px solid currentColor; }
.legend .line0 { color: var(--line0); } .legend .line1 { color: var(--line1); }
.legend .line2 { color: var(--line2); } .legend .line3 { color: var(--line3); }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
pre { overflow-x: auto; padding: .5rem; border: 1px solid; border-radius: 4px; }
"""
"""Of the whole page."""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            *filter(None, sections),
            "</body></html>",
            "",
        ]
    )


def section(title: str, *parts: str) -> str:
    """A part of the page with its title; empty if it has no content."""
    content = "\n".join(filter(None, parts))
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>" if content else ""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def listing(items: Sequence[str]) -> str:
    """A list of plain texts."""
    return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>" if items else ""


def commands(lines: Sequence[str]) -> str:
    """Commands to type."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def details(title: str, text: str) -> str:
    """A text that is shown on a click."""
    return f"<details><summary>{html.escape(title)}</summary>{commands([text])}</details>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = rows
    cells = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    cells += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    return f"<table>{''.join(cells)}</table>"


def picture(image: Image.Image, text: str) -> str:
    """A picture inside the page, with a text for who cannot see it."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def figure(content: str, caption: str) -> str:
    """Pictures with a caption."""
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def group(kind: str, items: Iterable[str]) -> str:
    """Elements side by side: `pictures`, `row`, `pair` or `sets`; see `STYLE`."""
    content = "".join(items)
    return f'<div class="{kind}">{content}</div>' if content else ""
