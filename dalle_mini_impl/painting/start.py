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


def first_ids(
    tokenizer: ImageTokenizer, size: int | tuple[int, int], start: Start | None, generator: torch.Generator
) -> Tensor:
    """Image ids (1, h, w) to start from: those of a picture, or random ones, each as likely as any other.

    Raises:
        UserError: the size is no multiple of the image tokenizer's factor, or the ids do not fit.
    """
    if isinstance(start, Tensor):
        return _checked(tokenizer, start, size)[None].clone()
    height, width = _sides(tokenizer, size)
    if start is not None:
        return tokenizer.encode(to_pixels([start], (height, width)).to(tokenizer.device)).clone()
    factor = tokenizer.config.factor
    return torch.randint(tokenizer.codebook_size, (1, height // factor, width // factor), generator=generator)


def _sides(tokenizer: ImageTokenizer, size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels."""
    factor, size = tokenizer.config.factor, size or tokenizer.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height < factor or width < factor or height % factor or width % factor:
        raise UserError(f"size {height}×{width} was given; both sides must be multiples of {factor} pixels")
    return height, width


def _checked(tokenizer: ImageTokenizer, ids: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Image ids (h, w), known to lie in range and to fit the size."""
    grid = tuple(side // tokenizer.config.factor for side in _sides(tokenizer, size)) if size else tuple(ids.shape)
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel() or tuple(ids.shape) != grid:
        raise UserError(
            f"image ids of shape {tuple(ids.shape)} and type {ids.dtype} were given to start from; "
            f"expected whole numbers of shape {grid if size else '(h, w)'}"
        )
    check_ids(ids, tokenizer.codebook_size, "image")
    return ids
