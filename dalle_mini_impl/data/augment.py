"""Random variants of stored pictures: size, position, mirror image, background colour."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.data import AugmentConfig


def pixels_on_white(rgba: np.ndarray, size: int) -> Tensor:
    """Put stored pictures on a white background and resize them, without random changes.

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
    """Sample how each picture of a batch is changed.

    This is separate from changing the pixels so that every process can sample for the whole batch and use its own rows.

    Args:
        batch: number of pictures, B.
        config: ranges of the changes.
        generator: CPU generator, the only source of randomness.

    Returns:
        (B, 7) float32: scale, mirrored (-1) or not (1), shift right and shift down (in half frames), then red, green
        and blue of the background, 0 to 1.
    """

    def uniform(low: float, high: float, columns: int) -> Tensor:
        return torch.rand(batch, columns, generator=generator) * (high - low) + low

    scale = uniform(*config.scale, 1)
    mirrored = torch.where(uniform(0, 1, 1) < config.flip, -1.0, 1.0)
    shift = uniform(-2 * config.shift, 2 * config.shift, 2)  # affine_grid's coordinates run from -1 to 1
    colour = torch.where(uniform(0, 1, 1) < config.background, uniform(0, 1, 3), 1.0)
    if config.crop:
        shift = shift + (scale - 1).clamp(min=0) * uniform(-1, 1, 2)
    return torch.cat([scale, mirrored, shift, colour], 1)


def augmented_pixels(rgba: np.ndarray, may_flip: np.ndarray, changes: Tensor, size: int) -> Tensor:
    """Apply sampled changes to stored pictures.

    Args:
        rgba: (B, S, S, 4) uint8; S about twice `size` gives the sharpest result.
        may_flip: (B,) bool, whether the mirror image is allowed.
        changes: (B, 7) from `random_changes`.
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) float32 in [-1, 1].
    """
    scale = changes[:, :1]
    mirrored = torch.where(torch.from_numpy(may_flip), changes[:, 1], 1.0)
    shift = changes[:, 2:4]
    background = changes[:, 4:, None, None]
    # affine_grid maps output positions to input positions, so this is the inverse of the change.
    matrix = torch.zeros(len(rgba), 2, 3)
    matrix[:, 0, 0] = mirrored / scale[:, 0]
    matrix[:, 1, 1] = 1 / scale[:, 0]
    matrix[:, :, 2] = -shift / scale
    layers = _premultiplied(rgba)
    if rgba.shape[1] > 2 * size:  # grid_sample interpolates 4 neighbours, so shrinking more than twofold would alias
        layers = F.interpolate(layers, (2 * size, 2 * size), mode="bilinear", antialias=True)
    grid = F.affine_grid(matrix, [len(rgba), 4, size, size], align_corners=False)
    # Beyond its border a photograph is continued by its outermost pixels; drawings are transparent there anyway.
    warped = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (warped[:, :3] + (1 - warped[:, 3:]) * background).clamp(0, 1) * 2 - 1


def _premultiplied(rgba: np.ndarray) -> Tensor:
    """Colour times alpha, and alpha: (B, 4, S, S) in [0, 1]. Resampling this makes no coloured fringes."""
    planes = torch.from_numpy(np.ascontiguousarray(rgba)).permute(0, 3, 1, 2)
    layers = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    layers[:, :3] *= layers[:, 3:]
    return layers
