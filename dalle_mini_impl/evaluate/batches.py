"""The pictures to evaluate with, and sheets that show what became of them."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.pair import SkipLog, split_of
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.images import contact_sheet, to_images, to_pixels

CHUNK = 64
SHEET_COLUMNS = 12
NAME_HEIGHT = 16


def picture_batches(data: str, split: str, size: int, log: SkipLog) -> Iterator[Tensor]:
    """Read pictures as pixels on white, from a store or from anything that training reads.

    Args:
        data: a store of decoded pictures, or a folder, table or tars of captioned pictures.
        split: `train`, `validation` or `all`.
        size: side in pixels.
        log: takes what had to be skipped.

    Yields:
        (B, 3, size, size) in [-1, 1].

    Raises:
        UserError: the data cannot be read, or the store has no such pictures.
    """
    if (Path(data) / "store.json").is_file():
        for part in ("train", "validation") if split == "all" else (split,):
            store = open_store(DataConfig(store=data), part)
            for start in range(0, len(store), CHUNK):
                yield pixels_on_white(store.take(np.arange(start, min(start + CHUNK, len(store)))), size)
        return
    images: list[Image.Image] = []
    for pair in read_pairs(data, log):
        if split in ("all", pair.split or split_of(pair.key, DataConfig.validation)):
            images.append(pair.image)
        if len(images) == CHUNK:
            yield to_pixels(images, size)
            images = []
    if images:
        yield to_pixels(images, size)


class Choice:
    """Keeps a few of the pictures that come by and what became of them: of as many pictures always the same ones."""

    def __init__(self, room: int) -> None:
        self.room, self.count, self.random = room, 0, random.Random(0)
        self.kept: list[tuple[Image.Image, Image.Image]] = []

    def offer(self, before: Tensor, after: Tensor) -> None:
        """Let a batch come by, twice (B, 3, H, W); each picture so far is kept with the same chance."""
        for number in range(len(before)):
            place = len(self.kept) if self.count < self.room else self.random.randrange(self.count + 1)
            if place < self.room:
                images = to_images(before[number : number + 1]) + to_images(after[number : number + 1])
                self.kept[place : place + 1] = [(images[0], images[1])]
            self.count += 1


def comparison_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Versions of the same pictures, a row for each under its name, enlarged to the size of the largest.

    Args:
        rows: name and pictures, equally many. Long rows are broken, all of them at the same place.
    """
    size = max(image.size for _, images in rows for image in images)
    strips = []
    for start in range(0, len(rows[0][1]), SHEET_COLUMNS):
        for name, images in rows:
            part = [image.resize(size, Image.Resampling.BICUBIC) for image in images[start : start + SHEET_COLUMNS]]
            strips.append((name, contact_sheet(part, columns=SHEET_COLUMNS)))
    height = strips[0][1].height + NAME_HEIGHT
    sheet = Image.new("RGB", (strips[0][1].width, height * len(strips)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (name, strip) in enumerate(strips):
        pen.text((4, number * height), name, fill="black", font=font)
        sheet.paste(strip, (0, number * height + NAME_HEIGHT))
    return sheet
