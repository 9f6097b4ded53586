"""Pictures in batches for image tokenizers to reconstruct, and sheets that compare the reconstructions."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.fit import fit_picture
from dalle_mini_impl.data.pair import Pair, SkipLog, fill_splits, split_of
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.evaluate.data import check_exists, is_store
from dalle_mini_impl.util.fonts import label_baseline, label_font
from dalle_mini_impl.util.images import contact_sheet, to_images, to_pixels
from dalle_mini_impl.util.memory import check_memory

BATCH_SIZE, MAX_BATCH_PIXELS = 64, 64 * 512**2
"""Most pictures, and pixels, in a batch."""
PIXEL_BYTES = 200
"""Bytes that a pixel takes at the least while a picture is encoded, decoded and measured."""
SHEET_COLUMNS = 12
TITLE_HEIGHT, TITLE_SIZE = 16, 12
"""Pixels above each row of a comparison sheet, for its name, and of its letters."""


def picture_batches(data: str, split: str, size: tuple[int, int], log: SkipLog) -> Iterator[Tensor]:
    """Read pictures as pixels on white, from a picture store or from anything that training reads.

    Args:
        data: a picture store, or a folder, table or tars of captioned pictures.
        split: `train`, `validation` or `all`.
        size: height and width in pixels. Pictures of other proportions are fitted as `data.fit` does by default.
        log: records what had to be skipped.

    Yields:
        (B, 3, *size) in [-1, 1].

    Raises:
        UserError: the data do not exist or cannot be read, the store has no pictures of this split, or one picture of
            the size does not fit into the memory.
    """
    check_exists(data)
    height, width = size
    check_memory(PIXEL_BYTES * height * width, f"pictures of {height}×{width} pixels", "choose a smaller size")
    batch_size = max(1, min(BATCH_SIZE, MAX_BATCH_PIXELS // (height * width)))
    if is_store(data):
        for part in ("train", "validation") if split == "all" else (split,):
            store = open_store(DataConfig(store=data), part)
            for start in range(0, len(store), batch_size):
                indices = np.arange(start, min(start + batch_size, len(store)))
                yield pixels_on_white(store.take(indices), size)
        return
    moved = {} if split == "all" else _moved_pictures(data)
    rows: list[Tensor] = []  # resized at once, so that no more than one picture is held in its own size
    for number, pair in enumerate(read_pairs(data, log)):
        if split in ("all", moved.get(number) or _split_of(pair)):
            rows.append(to_pixels([fit_picture(pair.image, size, DataConfig.fit).image], size))
        if len(rows) == batch_size:
            yield torch.cat(rows)
            rows = []
    if rows:
        yield torch.cat(rows)


def _split_of(pair: Pair) -> str:
    return pair.split or split_of(pair.key, DataConfig.validation)


def _moved_pictures(data: str) -> dict[int, str]:
    """The split of pictures, by their number, that `fill_splits` moves, as a store of the same data would have it.

    Nothing is moved where both splits have pictures, so only small sets are read to their end.
    """
    pictures: list[tuple[str, str, bool]] = []
    found: set[str] = set()
    for pair in read_pairs(data, SkipLog()):
        pictures.append((pair.key, _split_of(pair), not pair.split))
        found.add(pictures[-1][1])
        if len(found) > 1:
            return {}
    splits = fill_splits(pictures, DataConfig.validation)
    return {number: new for number, (new, (_, old, _)) in enumerate(zip(splits, pictures, strict=True)) if new != old}


class ReservoirSample:
    """Uniform sample of picture pairs from batches of unknown number (reservoir sampling, algorithm R, Vitter 1985).

    The seed is fixed: which positions are sampled depends on `capacity` and the number of pairs alone, so different
    image tokenizers show the same pictures.

    Args:
        capacity: most pairs to keep.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        """Pairs added so far."""
        self.pairs: list[tuple[Image.Image, Image.Image]] = []
        """The sample: (before, after)."""
        self._random = random.Random(0)

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add a batch of pairs.

        Args:
            before: (B, 3, H, W) in [-1, 1].
            after: the same shape; row i belongs to row i of `before`.
        """
        for row in range(len(before)):
            full = self.count >= self.capacity
            slot = self._random.randrange(self.count + 1) if full else len(self.pairs)
            if slot < self.capacity:
                images = to_images(before[row : row + 1]) + to_images(after[row : row + 1])
                self.pairs[slot : slot + 1] = [(images[0], images[1])]
            self.count += 1


def comparison_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Versions of the same pictures below each other, each row under its name, enlarged to the largest size.

    Args:
        rows: (name, pictures), equally many pictures in each. Rows of more than `SHEET_COLUMNS` pictures are split,
            all at the same picture.
    """
    size = max(image.size for _, images in rows for image in images)
    strips = []
    for start in range(0, len(rows[0][1]), SHEET_COLUMNS):
        for name, images in rows:
            part = [image.resize(size, Image.Resampling.BICUBIC) for image in images[start : start + SHEET_COLUMNS]]
            strips.append((name, contact_sheet(part, columns=SHEET_COLUMNS)))
    height = strips[0][1].height + TITLE_HEIGHT
    sheet = Image.new("RGB", (strips[0][1].width, height * len(strips)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, strip) in enumerate(strips):
        font, title = label_font(name, TITLE_SIZE)
        draw.text((4, row * height + label_baseline(TITLE_SIZE)), title, fill="black", font=font, anchor="ls")
        sheet.paste(strip, (0, row * height + TITLE_HEIGHT))
    return sheet
