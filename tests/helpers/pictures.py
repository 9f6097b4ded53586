"""Random pictures and pixels."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OLD_NS = 10**18
"""A modification time long ago, in nanoseconds."""


def block_picture(seed: int = 0, width: int = 24, height: int = 24) -> Image.Image:
    """An RGB picture of random blocks of 4×4 pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


def random_pixels(height: int, width: int, seed: int = 0) -> Tensor:
    """(1, 3, H, W), uniform in [-1, 1)."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_picture(seed: int, width: int = 23, height: int = 17) -> Image.Image:
    """An RGB picture of 3 × 4 random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def make_old(folder: Path) -> None:
    """Give all files below a folder a modification time long ago, as that of files that nobody writes now."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(OLD_NS, OLD_NS))
