"""Random variants of stored pictures: size, position, mirror image, background colour."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.data import AugmentConfig
from dalle_mini_impl.data.fit import drawn_bounds, drawn_parts, ground_of


def pixels_on_white(rgba: np.ndarray, size: int | tuple[int, int]) -> Tensor:
    """Put stored pictures on a white background and resize them, without random changes.

    Args:
        rgba: (B, H, W, 4) uint8.
        size: side of a square, or height and width, of the result in pixels; normally in the proportions of `rgba`.

    Returns:
        (B, 3, height, width) float32 in [-1, 1].
    """
    layers = _premultiplied(torch.from_numpy(np.ascontiguousarray(rgba)))
    over_white = layers[:, :3] + (1 - layers[:, 3:])
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(over_white, size, mode="bilinear", antialias=True).clamp(0, 1) * 2 - 1


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


class ChangedPictures(NamedTuple):
    """Stored pictures, and what is to be done to them; small enough to be moved to a device before it is done."""

    rgba: Tensor
    """(B, H, W, 4) uint8."""
    matrix: Tensor
    """(B, 2, 3) float32: positions in the result -> positions in the picture, from -1 to 1, right and down."""
    background: Tensor
    """(B, 3, 1, 1) in [0, 1], colour behind transparent parts."""
    is_full: Tensor
    """(B, 1) bool, whether a picture fills its frame; then it is continued by its edges, otherwise by its ground."""
    ground: Tensor
    """(B, 4, 1, 1) in [0, 1]: colour times alpha, and alpha, of the ground."""


def change_pictures(
    rgba: np.ndarray, may_flip: np.ndarray, changes: Tensor, keep_inside: bool = True
) -> ChangedPictures:
    """Work out what sampled changes do to stored pictures.

    Args:
        rgba: (B, H, W, 4) uint8.
        may_flip: (B,) bool, whether the mirror image is allowed.
        changes: (B, 7) from `random_changes`.
        keep_inside: as in `AugmentConfig`.
    """
    scale, shift = changes[:, :1], changes[:, 2:4]
    mirrored = torch.where(torch.from_numpy(may_flip), changes[:, 1], 1.0)
    is_full, ground = torch.ones(len(rgba), 1, dtype=torch.bool), torch.zeros(len(rgba), 4, 1, 1)
    if keep_inside:
        surroundings = _surroundings(rgba)
        scale, shift = surroundings.limit(scale, shift)
        is_full, ground = surroundings.full, surroundings.colour
    # affine_grid maps output positions to input positions, so this is the inverse of the change.
    matrix = torch.zeros(len(rgba), 2, 3)
    matrix[:, 0, 0] = mirrored / scale[:, 0]
    matrix[:, 1, 1] = 1 / scale[:, 0]
    matrix[:, :, 2] = -shift / scale
    pixels = torch.from_numpy(np.ascontiguousarray(rgba))
    return ChangedPictures(pixels, matrix, changes[:, 4:, None, None], is_full, ground)


def changed_pixels(pictures: ChangedPictures, size: int | tuple[int, int], keep_inside: bool = True) -> Tensor:
    """Change pictures, on the device where they are.

    Args:
        pictures: B pictures; about twice `size` gives the sharpest result.
        size: side of a square, or height and width, of the result in pixels, in the proportions of the pictures.
        keep_inside: as in `AugmentConfig`.

    Returns:
        (B, 3, height, width) float32 in [-1, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    layers = _premultiplied(pictures.rgba)
    if layers.shape[2] > 2 * height:  # grid_sample interpolates 4 neighbours: shrinking more than twofold would alias
        layers = F.interpolate(layers, (2 * height, 2 * width), mode="bilinear", antialias=True)
    grid = F.affine_grid(pictures.matrix, [len(layers), 4, height, width], align_corners=False)
    if keep_inside:
        # The middles of the outermost pixels, right and down; as numbers, which need not be moved to the device.
        right, down = (float(1 - np.float32(1) / np.float32(side)) for side in (layers.shape[3], layers.shape[2]))
        inside = torch.stack([grid[..., 0].clamp(-right, right), grid[..., 1].clamp(-down, down)], -1)
        grid = torch.where(pictures.is_full[..., None, None], inside, grid)
        # Outside, zeros are sampled, so the ground's colour is made zero meanwhile.
        layers = layers - pictures.ground
        warped = F.grid_sample(layers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        warped = warped + pictures.ground
    else:
        warped = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (warped[:, :3] + (1 - warped[:, 3:]) * pictures.background).clamp(0, 1) * 2 - 1


def augmented_pixels(
    rgba: np.ndarray, may_flip: np.ndarray, changes: Tensor, size: int | tuple[int, int], keep_inside: bool = True
) -> Tensor:
    """Apply sampled changes to stored pictures: `change_pictures`, then `changed_pixels`.

    Returns:
        (B, 3, height, width) float32 in [-1, 1].
    """
    return changed_pixels(change_pictures(rgba, may_flip, changes, keep_inside), size, keep_inside)


def pixels_on(
    device: torch.device, pictures: Tensor | ChangedPictures, size: int | tuple[int, int], keep_inside: bool = True
) -> Tensor:
    """Pixels on a device, without waiting for copies from pinned memory; `ChangedPictures` are changed there.

    Args:
        device: where to.
        pictures: pixels (B, 3, height, width), or what gives them.
        size: as for `changed_pixels`.
        keep_inside: as in `AugmentConfig`.
    """
    if isinstance(pictures, Tensor):
        return pictures.to(device, non_blocking=True)
    return changed_pixels(
        ChangedPictures._make(part.to(device, non_blocking=True) for part in pictures), size, keep_inside
    )


@dataclass(frozen=True)
class _Surroundings:
    """What is around the things drawn in pictures; coordinates run from -1 to 1, right and down."""

    full: Tensor
    """(B, 1) bool: whether a picture fills its frame."""
    colour: Tensor
    """(B, 4, 1, 1) in [0, 1]: colour times alpha, and alpha, of the ground of the others."""
    bounds: Tensor
    """(2, B, 2): where what is drawn begins and ends."""

    def limit(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Change scale (B, 1) and shift (B, 2) so that all that is drawn, or nothing else, is in the frame.

        The shift comes before mirroring here, and the frame is symmetric, so mirroring makes no difference.
        """
        scale = torch.where(self.full & (scale < 1), 1 / scale, scale)
        limits = torch.stack([-1 - scale * self.bounds[0], 1 - scale * self.bounds[1]])
        # What is drawn larger than the frame may be shifted until its edge reaches the frame's.
        return scale, shift.clamp(limits.amin(0), limits.amax(0))


def _surroundings(rgba: np.ndarray) -> _Surroundings:
    """Examine pictures (B, H, W, 4)."""
    grounds = [ground_of(picture) for picture in rgba]
    colours = [(*ground.colour, 255) if ground and ground.colour else (0, 0, 0, 0) for ground in grounds]
    bounds = torch.tensor(
        [drawn_bounds(drawn_parts(picture, ground)) for picture, ground in zip(rgba, grounds, strict=True)]
    )
    bounds = bounds.view(-1, 2, 2).transpose(0, 1) / torch.tensor(rgba.shape[2:0:-1]) * 2 - 1
    return _Surroundings(
        torch.tensor([[ground is None] for ground in grounds]),
        torch.tensor(colours, dtype=torch.float32)[..., None, None] / 255,
        bounds,
    )


def _premultiplied(rgba: Tensor) -> Tensor:
    """Colour times alpha, and alpha: (B, 4, H, W) in [0, 1]. Resampling this makes no coloured fringes."""
    layers = rgba.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    layers[:, :3] *= layers[:, 3:]
    return layers
