"""Zero-shot classification measured: pictures sorted into folders by class, against a scorer that reads the names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dalle_mini_impl.evaluate.intervals import TOP, Share, cell, markdown, share
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS, open_picture
from dalle_mini_impl.util.text import printable

CHUNK = 64
SHEET = 1200
"""Side in pixels that the squares of a confusion picture take together, unless the classes are too many."""
SHOWN = 24
"""Letters of a class's name on the picture."""


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """How pictures of known classes were classified."""

    labels: tuple[str, ...]
    confusion: Tensor
    """(n, n) int64, pictures of the row's class that were taken for the column's."""
    hits: Tensor
    """(n, 2) int64, pictures of each class whose label was the likeliest (top-1), or among the likeliest five."""
    skipped: tuple[str, ...]
    """Why a file could not be read, one line each."""

    def accuracy(self) -> tuple[Share, ...]:
        """Top-1 and top-5 over all pictures, each with its 95 % interval."""
        count = int(self.confusion.sum())
        return tuple(share([1.0] * int(hits) + [0.0] * (count - int(hits))) for hits in self.hits.sum(dim=0))


def find_classes(folder: str | Path) -> dict[str, list[Path]]:
    """Pictures by class: the folders in `folder` are the classes, their names, with spaces for `_`, the labels.

    Hidden files, and folders without pictures, are left out.

    Raises:
        UserError: `folder` is none, or holds fewer than two folders with pictures.
    """
    folder = Path(folder)
    found: dict[str, list[Path]] = {}
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that holds a folder of pictures for each class")
    for home in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        paths = sorted(
            path for path in home.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith(".")
        )
        if paths:
            found.setdefault(printable(home.name.replace("_", " ")), []).extend(paths)
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} folders with pictures; give at least two, one for each class")
    return found


def zero_shot(
    scorer: Scorer,
    classes: Mapping[str, Sequence[Path]],
    templates: Sequence[str] = ("{}",),
    progress: Callable[[int], Any] = lambda count: None,
) -> ZeroShot:
    """Classify every picture among all classes.

    Args:
        scorer: what looks at pictures and names.
        classes: pictures by label, at least one each.
        templates: see `Scorer.embed_labels`.
        progress: told how many files were looked at since the last call.

    Raises:
        UserError: no picture at all is readable, or a template has no `{}`.
    """
    labels, skipped = tuple(classes), []
    label_embed = scorer.embed_labels(labels, templates)
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64)
    hits = torch.zeros(len(labels), len(TOP), dtype=torch.int64)
    files = [(number, path) for number, paths in enumerate(classes.values()) for path in paths]
    for start in range(0, len(files), CHUNK):
        images, numbers, chunk = [], [], files[start : start + CHUNK]
        for number, path in chunk:
            try:
                images.append(open_picture(path))
                numbers.append(number)
            except UserError as error:
                skipped.append(printable(str(error)))
        true = torch.tensor(numbers, dtype=torch.int64)
        cosines = scorer.embed_images(images) @ label_embed.T
        order = cosines.sort(dim=1, descending=True, stable=True).indices
        confusion.index_put_((true, order[:, 0]), torch.ones_like(true), accumulate=True)
        found = order == true[:, None]
        hits.index_add_(0, true, torch.stack([found[:, :k].any(dim=1) for k in TOP], dim=1).long())
        progress(len(chunk))
    if not confusion.any():
        raise UserError(f"none of the {len(skipped)} pictures is readable; the first: {skipped[0]}")
    return ZeroShot(labels, confusion, hits, tuple(skipped))


def table(result: ZeroShot) -> str:
    """Accuracy of each class, worst first, then of all."""
    mistakes = result.confusion - result.confusion.diag().diag()
    rows = []
    for label, row, wrong, hits in zip(result.labels, result.confusion, mistakes, result.hits, strict=True):
        if count := int(row.sum()):
            shares = [f"{int(hit) / count:.2f}" for hit in hits]
            taken = result.labels[int(wrong.argmax())] if wrong.any() else ""
            rows.append((label, str(count), *shares, taken))
    rows.sort(key=lambda row: row[2])
    rows.append(("all", str(int(result.confusion.sum())), *map(cell, result.accuracy()), ""))
    heads = ("class", "pictures", *(f"top-{k}" for k in TOP), "mostly mistaken for")
    return markdown([dict(zip(heads, row, strict=True)) for row in rows])


def facts(result: ZeroShot) -> dict[str, Any]:
    """Everything as plain values."""
    shares = {f"top_{k}": vars(value) for k, value in zip(TOP, result.accuracy(), strict=True)}
    classes = {
        label: {"pictures": int(row.sum()), **{f"top_{k}": int(hit) for k, hit in zip(TOP, hits, strict=True)}}
        for label, row, hits in zip(result.labels, result.confusion, result.hits, strict=True)
    }
    return {**shares, "classes": classes, "confusion": result.confusion.tolist(), "skipped": list(result.skipped)}


def confusion_picture(result: ZeroShot) -> Image.Image:
    """Rows are true classes, columns what they were taken for, darker the larger the share of the row, in percent.

    Names stand at the left and above; where classes are too many for names, the squares stand alone.
    """
    count = len(result.labels)
    side = max(3, min(32, SHEET // count))
    font = ImageFont.load_default(size=min(14, side))
    names = [label if len(label) <= SHOWN else label[: SHOWN - 1] + "…" for label in result.labels]
    margin = int(max(map(font.getlength, names))) + 8 if side >= 9 else 4
    sheet = Image.new("RGB", (margin + count * side + 4,) * 2, "white")
    if side >= 9:
        strip = Image.new("RGB", (margin, count * side), "white")
        pen = ImageDraw.Draw(strip)
        for row, name in enumerate(names):
            pen.text((4, (row + 0.5) * side), name, fill="black", font=font, anchor="lm")
        sheet.paste(strip, (0, margin))
        sheet.paste(strip.transpose(Image.Transpose.ROTATE_90), (margin, 0))
    shares = result.confusion / result.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    fade = (255 * (1 - shares)).round().to(torch.uint8)
    full = torch.full_like(fade, 255)
    colours = torch.where(torch.eye(count).bool(), torch.stack((fade, full, fade)), torch.stack((full, fade, fade)))
    squares = Image.fromarray(colours.permute(1, 2, 0).contiguous().numpy())
    sheet.paste(squares.resize((count * side,) * 2, Image.Resampling.NEAREST), (margin, margin))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((margin - 1, margin - 1, *(sheet.width - 4,) * 2), outline="lightgrey")
    if side >= 24:
        for row, column in shares.nonzero().tolist():
            place = (margin + (column + 0.5) * side, margin + (row + 0.5) * side)
            pen.text(place, f"{100 * float(shares[row, column]):.0f}", "black", font_size=11, anchor="mm")
    return sheet
