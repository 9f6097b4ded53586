"""Random augmented crops of a picture ("cuts"), which the scorers embed instead of the picture itself.

Optimised against one fixed view, a picture becomes noise that only the scorer takes for its target; a picture whose
random crops all fit shows it (Crowson et al. 2022).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """How many cuts there are, and how they are augmented.

    Raises:
        UserError: a number is out of range.
    """

    count: int = 32
    """Cuts at each step."""
    chunk: int = 16
    """Cuts whose gradients are computed at a time, which bounds memory and changes nothing else."""
    shares: tuple[float, float] = (0.7, 1.0)
    """Least and greatest side of a cut, as a fraction of the picture's shorter side, in (0, 1]."""
    rotation: float = 5.0
    """Greatest rotation in degrees, 0 to 180."""
    mirror: bool = False
    """Mirror cuts with probability 1/2; not for pictures whose left and right differ, such as text."""
    jitter: float = 0.1
    """Greatest change of contrast, as a fraction, and of brightness, in pixel values, in [0, 1)."""
    noise: float = 0.05
    """Greatest standard deviation of a cut's Gaussian noise, in pixel values."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.chunk < 1:
            raise UserError(
                f"expected 1 or more cuts, and as many at a time, got {self.count} cuts, {self.chunk} at a time; "
                f"raise them"
            )
        if not 0 < self.shares[0] <= self.shares[1] <= 1:
            raise UserError(
                f"expected shares of cuts above 0 and at most 1, the smaller first, got {self.shares}; correct them"
            )
        if not 0 <= self.rotation <= 180:
            raise UserError(f"expected a rotation of cuts from 0 to 180 degrees, got {self.rotation}; correct it")
        if not 0 <= self.jitter < 1:
            raise UserError(f"expected a jitter of cuts from 0 to below 1, got {self.jitter}; correct it")
        if not 0 <= self.noise < math.inf:
            raise UserError(f"expected a noise of cuts of 0 or more, got {self.noise}; correct it")


@dataclass(frozen=True, eq=False)
class CutBoxes:
    """The random parameters of n cuts, except for the noise itself."""

    theta: Tensor
    """(n, 2, 3): affine maps from coordinates in the cut to coordinates in the picture, both from -1 to 1."""
    contrast: Tensor
    """(n, 1, 1, 1), factors."""
    brightness: Tensor
    """(n, 1, 1, 1), summands in pixel values."""
    noise: Tensor
    """(n, 1, 1, 1), standard deviations in pixel values."""

    def split(self, size: int) -> "list[CutBoxes]":
        """The cuts in chunks of at most `size`."""
        fields = (self.theta, self.contrast, self.brightness, self.noise)
        size = min(size, len(self.theta))  # torch takes no number above 2**63
        return [CutBoxes(*parts) for parts in zip(*(field.split(size) for field in fields), strict=True)]


def sample_cuts(cuts: Cuts, height: int, width: int, generator: torch.Generator) -> CutBoxes:
    """Sample the cuts of one step.

    Args:
        cuts: how many, and the ranges.
        height: of the picture in pixels.
        width: of the picture in pixels.
        generator: on the device that the parameters are made on.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(cuts.count, generator=generator, device=generator.device)

    # The order in which random numbers are drawn is part of what a seed means.
    side = uniform(*cuts.shares) * min(height, width)
    scale_x = side / width
    scale_y = side / height
    x, y = (uniform(-1, 1) * (1 - scale) for scale in (scale_x, scale_y))
    angle = uniform(-cuts.rotation, cuts.rotation).deg2rad()
    mirror = torch.where(uniform(0, 1) < 0.5 * cuts.mirror, -1.0, 1.0)
    theta = torch.stack(
        [
            torch.stack([mirror * angle.cos() * scale_x, -angle.sin() * scale_x, x], 1),
            torch.stack([mirror * angle.sin() * scale_y, angle.cos() * scale_y, y], 1),
        ],
        1,
    )
    ranges = ((1 - cuts.jitter, 1 + cuts.jitter), (-cuts.jitter, cuts.jitter), (0, cuts.noise))
    return CutBoxes(theta, *(uniform(low, high)[:, None, None, None] for low, high in ranges))


def cut_out(pixels: Tensor, boxes: CutBoxes, generator: torch.Generator) -> Tensor:
    """Cut a picture, or each of n pictures; gradients flow back to it.

    Where a rotated cut reaches beyond the picture, the picture's border is continued. Cuts have the picture's own
    resolution, and scorers make them smaller with antialiasing, which `grid_sample` does not do.

    Args:
        pixels: (1, 3, H, W) or (n, 3, H, W) in [-1, 1].
        boxes: n cuts, of the one picture or one of each.
        generator: for the noise, which is drawn cut by cut, so that it does not depend on the chunks.

    Returns:
        (n, 3, S, S), where S is the shorter side of the picture.
    """
    count = len(boxes.theta)
    side = min(pixels.shape[2:])
    grid = F.affine_grid(boxes.theta, [count, 3, side, side], align_corners=False).to(pixels.device)
    views = F.grid_sample(pixels.expand(count, -1, -1, -1), grid, padding_mode="border", align_corners=False)
    shape, device = (3, side, side), generator.device
    noise = torch.stack([torch.randn(shape, generator=generator, device=device) for _ in range(count)]) * boxes.noise
    return views * boxes.contrast.to(pixels) + (boxes.brightness + noise).to(pixels)
