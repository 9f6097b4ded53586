"""The image ids that a painting starts from."""

from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import check_ids
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

Start: TypeAlias = Image.Image | Tensor
"""A picture, or image ids (h, w)."""


def start_ids(
    tokenizer: ImageTokenizer, size: int | tuple[int, int], start: Start | None, generator: torch.Generator
) -> Tensor:
    """Image ids (1, h, w) to start from: those of a picture, those given, or uniformly random ones.

    Args:
        tokenizer: encodes a picture.
        size: see `PaintSettings.size`.
        start: a picture of any size, image ids (h, w), or None for random ids.
        generator: on the CPU, for random ids.

    Raises:
        UserError: the size is no multiple of the image tokenizer's factor, or the ids do not fit the size or are out of
            range.
    """
    if isinstance(start, Tensor):
        return _checked_start(tokenizer, start, size)[None].clone()
    height, width = pixel_size(tokenizer, size)
    if start is not None:
        return tokenizer.encode(to_pixels([start], (height, width)).to(tokenizer.device)).clone()
    factor = tokenizer.config.factor
    return torch.randint(tokenizer.codebook_size, (1, height // factor, width // factor), generator=generator)


def pixel_size(tokenizer: ImageTokenizer, size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels."""
    factor = tokenizer.config.factor
    size = size or tokenizer.config.size
    height, width = (size, size) if isinstance(size, int) else size
    if height < factor or width < factor or height % factor or width % factor:
        raise UserError(f"expected a size in multiples of {factor} pixels, got size {height}×{width}; change it")
    return height, width


def _checked_start(tokenizer: ImageTokenizer, ids: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The ids as int64, if they are integers (h, w) in range, and of the size, if one is given."""
    grid = tuple(ids.shape)
    if size:
        grid = tuple(side // tokenizer.config.factor for side in pixel_size(tokenizer, size))
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel() or tuple(ids.shape) != grid:
        raise UserError(
            f"expected integer image ids of shape {grid if size else '(h, w)'} to start from, "
            f"got shape {tuple(ids.shape)} and type {ids.dtype}; encode a picture of the size"
        )
    return check_ids(ids, tokenizer.codebook_size, "image")
