"""Zero-shot classification by a scorer (Radford et al. 2021, section 3.1) of pictures in one folder per class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.sample import SPLITS, list_files
from dalle_mini_impl.evaluate.intervals import TOP_K, Share, format_share, mean_share
from dalle_mini_impl.scorer.picture_files import embed_picture_files
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.fonts import label_font
from dalle_mini_impl.util.images import picture_kind
from dalle_mini_impl.util.tables import markdown_table
from dalle_mini_impl.util.text import printable

SPLIT_NAMES = frozenset((*SPLITS, "test", "testing"))
"""Names of folders, in lower case, that hold parts of a data set and not a class."""
MATRIX_SIDE = 1200
"""Pixels along each side of the confusion matrix; more only where that leaves less than 3 pixels per class."""
MAX_NAME_LENGTH = 24
"""Letters of a class's name in the confusion picture."""
MIN_NAMED_SIDE = 9
"""Pixels per class from which names fit beside the confusion matrix."""
MIN_NUMBERED_SIDE = 24
"""Pixels per class from which percentages fit into its cells."""


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """Predicted classes of pictures of known classes."""

    labels: tuple[str, ...]
    confusion: Tensor
    """(n, n) int64, number of pictures of the row's class classified as the column's."""
    hits: Tensor
    """(n, 2) int64, number of pictures of each class whose label was among the likeliest k, for each k of `TOP_K`."""
    skipped: tuple[str, ...]
    """Why a file could not be read, one line each."""

    def accuracy(self) -> tuple[Share, ...]:
        """Top-1 and top-5 over all pictures, each with its 95 % interval."""
        count = int(self.confusion.sum())
        return tuple(mean_share([1.0] * int(hits) + [0.0] * (count - int(hits))) for hits in self.hits.sum(dim=0))


def find_classes(folder: str | Path) -> dict[str, list[Path]]:
    """Pictures by class: every subfolder is a class, its name, with spaces for `_`, the label.

    Hidden files, and folders without pictures, are left out.

    Raises:
        UserError: `folder` is no folder, or holds fewer than two folders with pictures.
    """
    folder = Path(folder)
    classes: dict[str, list[Path]] = {}
    if not folder.is_dir():
        raise UserError(f"expected a folder with a folder of pictures for each class, got {folder}; check the path")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = []
    for subfolder in subfolders:
        files = list_files(subfolder, SkipLog())
        paths = [path for path in files if picture_kind(path) == "readable"]
        if paths:
            label = printable(subfolder.name.replace("_", " ")) or printable(subfolder.name)
            classes.setdefault(label, []).extend(paths)
            if subfolder.name.lower() in SPLIT_NAMES and any(path.parent != subfolder for path in paths):
                splits.append(subfolder)
    if splits and len(splits) == len(classes):
        raise UserError(
            f"expected a folder for each class in {folder}, got the splits {', '.join(path.name for path in splits)}; "
            f"give one of them, such as {splits[-1]}"
        )
    if len(classes) < 2:
        raise UserError(
            f"expected at least two folders with pictures in {folder}, got {len(classes)}; give one for each class"
        )
    return classes


def measure_zero_shot(
    scorer: Scorer,
    classes: Mapping[str, Sequence[Path]],
    templates: Sequence[str] = ("{}",),
    progress: Callable[[int], Any] = lambda count: None,
) -> ZeroShotResult:
    """Classify every picture among all classes.

    Args:
        scorer: to be measured.
        classes: pictures by label, at least one each.
        templates: see `Scorer.embed_labels`.
        progress: called with the number of files each step has processed.

    Raises:
        UserError: no picture at all is readable, or a template has no `{}`.
    """
    labels = tuple(classes)
    skipped = []
    label_embed = scorer.embed_labels(labels, templates)
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64)
    hits = torch.zeros(len(labels), len(TOP_K), dtype=torch.int64)
    files = [(class_id, path) for class_id, paths in enumerate(classes.values()) for path in paths]
    for batch in embed_picture_files(scorer, files, lambda file: file[1]):
        skipped += [printable(f"{picture.item[1]}: {picture.reason}") for picture in batch if picture.reason]
        progress(len(batch))
        readable = [(picture.item[0], picture.embedding) for picture in batch if picture.embedding is not None]
        if not readable:
            continue
        class_ids = torch.tensor([class_id for class_id, _ in readable], dtype=torch.int64)
        cosines = torch.stack([embedding for _, embedding in readable]) @ label_embed.T
        order = cosines.sort(dim=1, descending=True, stable=True).indices
        confusion.index_put_((class_ids, order[:, 0]), torch.ones_like(class_ids), accumulate=True)
        correct = order == class_ids[:, None]
        hits.index_add_(0, class_ids, torch.stack([correct[:, :k].any(dim=1) for k in TOP_K], dim=1).long())
    if not confusion.any():
        raise UserError(
            f"none of the {len(skipped)} pictures is readable; give PNG or JPEG files; the first: {skipped[0]}"
        )
    return ZeroShotResult(labels, confusion, hits, tuple(skipped))


def accuracy_table(result: ZeroShotResult) -> str:
    """Accuracy of each class, lowest first, then of all."""
    mistakes = result.confusion - result.confusion.diag().diag()
    rows = []
    for label, row, wrong, hits in zip(result.labels, result.confusion, mistakes, result.hits, strict=True):
        if count := int(row.sum()):
            shares = [f"{int(hit) / count:.2f}" for hit in hits]
            mistaken_for = result.labels[int(wrong.argmax())] if wrong.any() else ""
            rows.append((label, str(count), *shares, mistaken_for))
    rows.sort(key=lambda row: row[2])
    rows.append(("all", str(int(result.confusion.sum())), *map(format_share, result.accuracy()), ""))
    titles = ("class", "pictures", *(f"top-{k}" for k in TOP_K), "mostly mistaken for")
    return markdown_table([dict(zip(titles, row, strict=True)) for row in rows])


def as_json(result: ZeroShotResult) -> dict[str, Any]:
    """The whole result as plain values."""
    shares = {f"top_{k}": vars(value) for k, value in zip(TOP_K, result.accuracy(), strict=True)}
    classes = {
        label: {"pictures": int(row.sum()), **{f"top_{k}": int(hit) for k, hit in zip(TOP_K, hits, strict=True)}}
        for label, row, hits in zip(result.labels, result.confusion, result.hits, strict=True)
    }
    return {**shares, "classes": classes, "confusion": result.confusion.tolist(), "skipped": list(result.skipped)}


def confusion_picture(result: ZeroShotResult) -> Image.Image:
    """The confusion matrix: rows are true classes, columns predicted ones.

    A cell is the darker the larger its fraction of the row, which it holds in percent; the diagonal is green, mistakes
    are red. Names are at the left and above; they and the numbers are left out where there are too many classes.
    """
    count = len(result.labels)
    side = max(3, min(32, MATRIX_SIDE // count))
    names = [label if len(label) <= MAX_NAME_LENGTH else label[: MAX_NAME_LENGTH - 1] + "…" for label in result.labels]
    titles = [label_font(name, min(14, side)) for name in names] if side >= MIN_NAMED_SIDE else []
    margin = int(max(font.getlength(title) for font, title in titles)) + 8 if titles else 4
    picture = Image.new("RGB", (margin + count * side + 4,) * 2, "white")
    if titles:
        strip = Image.new("RGB", (margin, count * side), "white")
        draw = ImageDraw.Draw(strip)
        for row, (font, title) in enumerate(titles):
            draw.text((4, (row + 0.5) * side), title, fill="black", font=font, anchor="lm")
        picture.paste(strip, (0, margin))
        picture.paste(strip.transpose(Image.Transpose.ROTATE_90), (margin, 0))
    shares = result.confusion / result.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    faded = (255 * (1 - shares)).round().to(torch.uint8)
    full = torch.full_like(faded, 255)
    green = torch.stack((faded, full, faded))
    red = torch.stack((full, faded, faded))
    colours = torch.where(torch.eye(count).bool(), green, red)
    matrix = Image.fromarray(colours.permute(1, 2, 0).contiguous().numpy())
    picture.paste(matrix.resize((count * side,) * 2, Image.Resampling.NEAREST), (margin, margin))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((margin - 1, margin - 1, *(picture.width - 4,) * 2), outline="lightgrey")
    if side >= MIN_NUMBERED_SIDE:
        for row, column in shares.nonzero().tolist():
            centre = (margin + (column + 0.5) * side, margin + (row + 0.5) * side)
            draw.text(centre, f"{100 * float(shares[row, column]):.0f}", "black", font_size=11, anchor="mm")
    return picture
