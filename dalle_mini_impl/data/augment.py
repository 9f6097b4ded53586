"""Random variants of stored pictures: size, place, mirror image, background colour."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.data import AugmentConfig


def pixels_on_white(rgba: np.ndarray, size: int) -> Tensor:
    """Stored pictures on white, unchanged but for their size.

    Args:
        rgba: (B, S, S, 4) uint8.
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) float32 in [-1, 1].
    """
    layers = _premultiplied(rgba)
    over_white = layers[:, :3] + (1 - layers[:, 3:])
    return F.interpolate(over_white, (size, size), mode="bilinear", antialias=True).clamp(0, 1) * 2 - 1


def random_changes(batch: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw what happens to each picture of a batch, as rows of numbers.

    Drawn apart from the pixels, so that every process can draw for the whole batch and use its own rows.

    Args:
        batch: number of pictures.
        config: ranges of the changes.
        generator: CPU generator that all randomness comes from.

    Returns:
        (batch, 7): scale, mirrored (1 or -1), shift right, shift down, then the background's red, green, blue.
    """

    def uniform(low: float, high: float, width: int) -> Tensor:
        return torch.rand(batch, width, generator=generator) * (high - low) + low

    scale = uniform(*config.scale, 1)
    mirrored = torch.where(uniform(0, 1, 1) < config.flip, -1.0, 1.0)
    shift = uniform(-2 * config.shift, 2 * config.shift, 2)  # affine_grid's frame is 2 wide
    colour = torch.where(uniform(0, 1, 1) < config.background, uniform(0, 1, 3), 1.0)
    if config.crop:
        shift = shift + (scale - 1).clamp(min=0) * uniform(-1, 1, 2)
    return torch.cat([scale, mirrored, shift, colour], 1)


def augmented_pixels(rgba: np.ndarray, may_flip: np.ndarray, changes: Tensor, size: int) -> Tensor:
    """Apply random changes to stored pictures.

    Args:
        rgba: (B, S, S, 4) uint8; S about twice `size` gives the cleanest result.
        may_flip: (B,) bool, whether the mirror image is allowed.
        changes: (B, 7) from `random_changes`.
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) float32 in [-1, 1].
    """
    scale, mirrored, shift, colour = (
        changes[:, :1],
        changes[:, 1],
        changes[:, 2:4],
        changes[:, 4:, None, None],
    )
    mirrored = torch.where(torch.from_numpy(may_flip), mirrored, 1.0)
    # affine_grid maps output places to input places, hence the inverse of the wanted change.
    matrix = torch.zeros(len(rgba), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = (
        mirrored / scale[:, 0],
        1 / scale[:, 0],
        -shift / scale,
    )
    layers = _premultiplied(rgba)
    if rgba.shape[1] > 2 * size:  # grid_sample reads 4 neighbours: more than twofold shrinking would alias
        layers = F.interpolate(layers, (2 * size, 2 * size), mode="bilinear", antialias=True)
    grid = F.affine_grid(matrix, [len(rgba), 4, size, size], align_corners=False)
    # Opaque photographs are continued at their border; drawings end in transparency anyway.
    warped = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (warped[:, :3] + (1 - warped[:, 3:]) * colour).clamp(0, 1) * 2 - 1


def _premultiplied(rgba: np.ndarray) -> Tensor:
    """Colour times alpha, and alpha (B, 4, S, S), in [0, 1]: what may be resampled without fringes."""
    planes = torch.from_numpy(np.ascontiguousarray(rgba)).permute(0, 3, 1, 2)
    layers = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    layers[:, :3] *= layers[:, 3:]
    return layers
