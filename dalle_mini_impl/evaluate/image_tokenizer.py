"""What an image tokenizer keeps of pictures: PSNR, SSIM, and how much of its codebook it uses."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.config import DataConfig
from dalle_mini_impl.data.augment import plain_pixels
from dalle_mini_impl.data.pairs import SkipLog, split_of
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.store import open_store
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.image_tokenizer import ImageTokenizer
from dalle_mini_impl.images import contact_sheet, to_images, to_pixels
from dalle_mini_impl.metrics import count_ids, perplexity, psnr, ssim, usage

CHUNK = 64
SHOWN = 48
"""Pictures on the before/after sheet."""
SHEET_COLUMNS = 12
SPLITS = ("train", "validation", "all")


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """Quality of an image tokenizer on one set of pictures."""

    pictures: int
    psnr: float
    """dB, mean over pictures."""
    ssim: float
    """Mean over pictures, at most 1."""
    usage: float
    """Share of the codebook that occurs, 0 to 1."""
    perplexity: float
    """Effective number of ids in use, 1 to K."""
    codebook_size: int
    """K."""
    pictures_per_second: float
    """Encoding and decoding together, without reading the pictures."""


def evaluate_image_tokenizer(
    tokenizer: ImageTokenizer, batches: Iterable[Tensor]
) -> tuple[TokenizerReport, Image.Image]:
    """Encode and decode pictures.

    Args:
        tokenizer: in evaluation mode.
        batches: pixels (B, 3, H, W) in [-1, 1], H and W multiples of its factor and at least 11.

    Returns:
        The report, and a sheet with each row of originals above a row of what became of them.

    Raises:
        UserError: there is no picture.
    """
    device = next(tokenizer.parameters()).device
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    qualities: list[Tensor] = []
    shown: list[tuple[Tensor, Tensor]] = []
    seconds = 0.0
    for before in batches:
        start = time.perf_counter()
        ids = tokenizer.encode(before.to(device))
        after = tokenizer.decode(ids).cpu()
        seconds += time.perf_counter() - start
        counts += count_ids(ids, tokenizer.codebook_size)
        qualities.append(torch.stack([psnr(after, before), ssim(after, before)]))
        shown += list(zip(before, after, strict=True))[: SHOWN - len(shown)]
    if not qualities:
        raise UserError("there is no picture in the data; name a set, or a split of it, that holds some")
    quality = torch.cat(qualities, dim=1)
    report = TokenizerReport(
        pictures=quality.shape[1], psnr=float(quality[0].mean()), ssim=float(quality[1].mean()),
        usage=usage(counts), perplexity=perplexity(counts), codebook_size=tokenizer.codebook_size,
        pictures_per_second=quality.shape[1] / seconds,
    )  # fmt: skip
    return report, before_after(shown)


def before_after(pairs: list[tuple[Tensor, Tensor]]) -> Image.Image:
    """A sheet of (3, H, W) pictures: a row of originals, a row of what became of them, and so on."""
    images = []
    for start in range(0, len(pairs), SHEET_COLUMNS):
        row = pairs[start : start + SHEET_COLUMNS]
        for column in zip(*row, strict=True):
            pixels = torch.stack(column)
            # A short last row is filled up with white, or its second half would move up beside the first.
            missing = min(SHEET_COLUMNS, len(pairs)) - len(row)
            images += to_images(torch.cat([pixels, pixels.new_ones(missing, *pixels.shape[1:])]))
    return contact_sheet(images, columns=SHEET_COLUMNS)


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
                yield plain_pixels(store.take(np.arange(start, min(start + CHUNK, len(store)))), size)
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
