"""Random variants of stored pictures: size, position, mirror image, background colour."""

from dataclasses import dataclass

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
    layers = _premultiplied(rgba)
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


def augmented_pixels(
    rgba: np.ndarray, may_flip: np.ndarray, changes: Tensor, size: int | tuple[int, int], keep_inside: bool = True
) -> Tensor:
    """Apply sampled changes to stored pictures.

    Args:
        rgba: (B, H, W, 4) uint8; about twice `size` gives the sharpest result.
        may_flip: (B,) bool, whether the mirror image is allowed.
        changes: (B, 7) from `random_changes`.
        size: side of a square, or height and width, of the result in pixels, in the proportions of `rgba`.
        keep_inside: as in `AugmentConfig`.

    Returns:
        (B, 3, height, width) float32 in [-1, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    scale, shift = changes[:, :1], changes[:, 2:4]
    mirrored = torch.where(torch.from_numpy(may_flip), changes[:, 1], 1.0)
    layers = _premultiplied(rgba)
    surroundings = _surroundings(rgba) if keep_inside else None
    if surroundings:
        scale, shift = surroundings.limit(scale, shift)
    background = changes[:, 4:, None, None]
    # affine_grid maps output positions to input positions, so this is the inverse of the change.
    matrix = torch.zeros(len(rgba), 2, 3)
    matrix[:, 0, 0] = mirrored / scale[:, 0]
    matrix[:, 1, 1] = 1 / scale[:, 0]
    matrix[:, :, 2] = -shift / scale
    if rgba.shape[1] > 2 * height:  # grid_sample interpolates 4 neighbours: shrinking more than twofold would alias
        layers = F.interpolate(layers, (2 * height, 2 * width), mode="bilinear", antialias=True)
    grid = F.affine_grid(matrix, [len(rgba), 4, height, width], align_corners=False)
    if surroundings:
        warped = surroundings.sample(layers, grid)
    else:
        warped = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (warped[:, :3] + (1 - warped[:, 3:]) * background).clamp(0, 1) * 2 - 1


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

    def sample(self, layers: Tensor, grid: Tensor) -> Tensor:
        """Sample layers (B, 4, H, W) at the positions of a grid; beyond their edges there is the ground."""
        # The middles of the outermost pixels, right and down.
        inside = 1 - 1 / torch.tensor([layers.shape[-1], layers.shape[-2]])
        grid = torch.where(self.full[..., None, None], grid.clamp(-inside, inside), grid)
        # Outside, zeros are sampled, so the ground's colour is made zero meanwhile.
        warped = F.grid_sample(layers - self.colour, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return warped + self.colour


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


def _premultiplied(rgba: np.ndarray) -> Tensor:
    """Colour times alpha, and alpha: (B, 4, H, W) in [0, 1]. Resampling this makes no coloured fringes."""
    planes = torch.from_numpy(np.ascontiguousarray(rgba)).permute(0, 3, 1, 2)
    layers = planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    layers[:, :3] *= layers[:, 3:]
    return layers
