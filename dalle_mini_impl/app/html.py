"""Pictures, charts and messages as HTML: whatever comes from outside is escaped, pictures have alternative texts."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dalle_mini_impl.util.save_picture import picture_bytes

CHART_WIDTH, CHART_HEIGHT, BINS = 320, 84, 24
"""Size of a histogram in units of its picture, and its most bars."""


def data_uri(image: Image.Image, metadata: dict[str, Any] | None = None, text: str = "") -> str:
    """A picture as PNG within an address, with what `save_picture` writes into files."""
    return "data:image/png;base64," + base64.b64encode(picture_bytes(image, ".png", metadata, text)).decode()


def picture(image: Image.Image, alt: str, css: str = "large") -> str:
    """One picture, with its alternative text."""
    return f'<img class="{css}" src="{data_uri(image)}" alt="{html.escape(alt)}">'


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a gallery."""

    image: Image.Image
    alt: str
    """Alternative text."""
    caption: str = ""
    """Shown below it."""
    file_name: str = ""
    """Of the download; empty for none."""
    metadata: dict[str, Any] | None = None
    """What its PNG records."""
    text: str = ""
    """What its PNG tells other programs."""
    dimmed: bool = False
    """Whether it is shown as left out."""


def gallery(tiles: Sequence[Tile], *, choosable: bool = False) -> str:
    """Pictures side by side.

    Args:
        tiles: what to show, in order.
        choosable: whether a click on a picture, or Enter, chooses it.
    """
    items = []
    for number, tile in enumerate(tiles):
        uri = data_uri(tile.image, tile.metadata, tile.text)
        shown = f'<img src="{uri}" alt="{html.escape(tile.alt)}">'
        if choosable:
            label = html.escape(f"Choose picture {number + 1}: {tile.alt}")
            shown = f'<button type="button" data-index="{number}" aria-label="{label}">{shown}</button>'
        link = ""
        if tile.file_name:
            name = html.escape(tile.file_name)
            link = f' <a href="{uri}" download="{name}" aria-label="Download {name}">save</a>'
        caption = f"<figcaption>{html.escape(tile.caption)}{link}</figcaption>" if tile.caption or link else ""
        css = ' class="dimmed"' if tile.dimmed else ""
        items.append(f"<li{css}><figure>{shown}{caption}</figure></li>")
    return f'<ul class="pictures" role="list">{"".join(items)}</ul>'


def status(text: str, done: float | None = None) -> str:
    """What is going on, announced by screen readers.

    Args:
        text: in a few words.
        done: fraction that is done, for a bar; None for no bar.
    """
    words = html.escape(text)
    bar = "" if done is None else f'<progress max="1" value="{done:.3f}" aria-label="{words}"></progress>'
    return f'<p class="status" role="status">{words}{bar}</p>'


def problem(text: str) -> str:
    """What went wrong, announced by screen readers at once."""
    text = text[:1].upper() + text[1:]
    return f'<p class="problem" role="alert">{html.escape(text)}</p>'


def histogram(values: Sequence[float], kept: int, what: str) -> str:
    """How values are distributed.

    Args:
        values: at least one, the kept ones first.
        kept: how many are marked.
        what: they are, for the caption.
    """
    low, high = min(values), max(values)
    bins = min(BINS, len(values))
    counts = [[0, 0] for _ in range(bins)]
    for index, value in enumerate(values):
        place = min(bins - 1, int((value - low) / (high - low) * bins)) if high > low else 0
        counts[place][index < kept] += 1
    tallest = max(sum(pair) for pair in counts)
    width, unit = CHART_WIDTH / bins, CHART_HEIGHT / tallest
    bars = []
    for place, (others, marked) in enumerate(counts):
        left = place * width
        for count, top, css in ((marked, 0, "kept"), (others, marked, "others")):
            if count:
                bars.append(
                    f'<rect class="{css}" x="{left + 1:.1f}" y="{CHART_HEIGHT - unit * (top + count):.1f}" '
                    f'width="{max(width - 2, 1):.1f}" height="{unit * count:.1f}"/>'
                )
    shown = "all are shown" if kept >= len(values) else f"the {kept} that are shown are marked"
    label = html.escape(f"{what} of {len(values)} candidates, from {low:.2f} to {high:.2f}; {shown}")
    return (
        f'<figure class="chart"><svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{label}" '
        f'preserveAspectRatio="none">{"".join(bars)}</svg>'
        f'<div class="axis" aria-hidden="true"><span>{low:.2f}</span><span>{high:.2f}</span></div>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def pieces(ids: Sequence[tuple[int, str]]) -> str:
    """Text ids in their order, each with the text that it stands for."""
    items = "".join(
        f"<li><code>{html.escape(piece) or '?'}</code><span>{text_id}</span></li>" for text_id, piece in ids
    )
    return f'<ol class="pieces">{items}</ol>' if ids else '<p class="status">no text ids: no caption</p>'


def id_grid(rows: Sequence[Sequence[int | None]], current: tuple[int, int] | None = None) -> str:
    """The token grid with the image ids that are sampled so far.

    Args:
        rows: (h, w), None where none is sampled yet.
        current: row and column of the cell that is marked.
    """
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=' + chr(34) + 'current' + chr(34) if (r, c) == current else ''}>{'' if i is None else i}</td>"
            for c, i in enumerate(row)
        )
        + "</tr>"
        for r, row in enumerate(rows)
    )
    done = sum(i is not None for row in rows for i in row)
    total = sum(map(len, rows))
    return f'<table class="ids"><caption>{done} of {total} image ids</caption><tbody>{body}</tbody></table>'


@dataclass(frozen=True, eq=False)
class Bar:
    """One value of a bar chart."""

    name: str
    share: float
    """0 to 1."""
    image: Image.Image
    marked: bool


def bars(items: Sequence[Bar], title: str) -> str:
    """Probabilities as bars, each with a picture of what it is of."""
    rows = "".join(
        f"<li{' class=' + chr(34) + 'marked' + chr(34) if item.marked else ''}>"
        f'<img src="{data_uri(item.image)}" alt=""><span>{html.escape(item.name)}</span>'
        f'<progress max="1" value="{item.share:.4f}" aria-label="{html.escape(item.name)}"></progress>'
        f"<span>{item.share:.1%}{' sampled' if item.marked else ''}</span></li>"
        for item in items
    )
    return f'<figure class="bars"><figcaption>{html.escape(title)}</figcaption><ol>{rows}</ol></figure>'
