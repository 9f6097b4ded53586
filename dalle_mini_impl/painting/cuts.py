"""Random cuts of a picture, each a little changed: a scorer that is shown many is harder to fool.

A picture that fits a text in one exact view only is noise to everyone else.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """How pictures are cut.

    Raises:
        UserError: a number is out of range.
    """

    count: int = 32
    """Cuts at each step."""
    chunk: int = 16
    """Cuts whose gradients are computed at a time, which bounds memory and changes nothing else."""
    shares: tuple[float, float] = (0.7, 1.0)
    """Least and greatest side of a cut, as a share of the picture's shorter side."""
    rotation: float = 5.0
    """Greatest rotation in degrees."""
    mirror: bool = False
    """Mirror every second cut; not for pictures whose left and right differ."""
    jitter: float = 0.1
    """Greatest change of contrast, as a share, and of brightness, in pixels' values."""
    noise: float = 0.05
    """Greatest standard deviation of the noise of a cut, in pixels' values."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.chunk < 1:
            raise UserError(f"{self.count} cuts, {self.chunk} at a time, were asked for; expected 1 or more of each")
        if not 0 < self.shares[0] <= self.shares[1] <= 1:
            raise UserError(f"cuts of shares {self.shares} were asked for; expected two from above 0 to 1, in order")
        if not (0 <= self.rotation <= 180 and 0 <= self.jitter < 1 and 0 <= self.noise < math.inf):
            raise UserError(
                f"cuts with rotation {self.rotation}, jitter {self.jitter} and noise {self.noise} were "
                f"asked for; expected 0 to 180 degrees, 0 to below 1, and 0 or more"
            )


@dataclass(frozen=True, eq=False)
class CutBoxes:
    """What is random about n cuts, but for the noise itself."""

    theta: Tensor
    """(n, 2, 3): a cut's coordinates to the picture's, both -1 to 1."""
    contrast: Tensor
    """(n, 1, 1, 1)"""
    brightness: Tensor
    """(n, 1, 1, 1)"""
    noise: Tensor
    """(n, 1, 1, 1), standard deviations."""

    def split(self, size: int) -> "list[CutBoxes]":
        """Cuts in chunks of `size`."""
        fields = (self.theta, self.contrast, self.brightness, self.noise)
        return [CutBoxes(*parts) for parts in zip(*(field.split(size) for field in fields), strict=True)]


def draw_cuts(cuts: Cuts, height: int, width: int, generator: torch.Generator) -> CutBoxes:
    """Draw the cuts of one step for a picture of this size."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(cuts.count, generator=generator)

    side = uniform(*cuts.shares) * min(height, width)
    sideways, down = side / width, side / height
    x, y = (uniform(-1, 1) * (1 - scale) for scale in (sideways, down))
    angle = uniform(-cuts.rotation, cuts.rotation).deg2rad()
    mirror = torch.where(uniform(0, 1) < 0.5 * cuts.mirror, -1.0, 1.0)
    rows = torch.stack(
        [
            torch.stack([mirror * angle.cos() * sideways, -angle.sin() * sideways, x], 1),
            torch.stack([mirror * angle.sin() * down, angle.cos() * down, y], 1),
        ],
        1,
    )
    ranges = ((1 - cuts.jitter, 1 + cuts.jitter), (-cuts.jitter, cuts.jitter), (0, cuts.noise))
    return CutBoxes(rows, *(uniform(*between)[:, None, None, None] for between in ranges))


def cut_out(pixels: Tensor, drawn: CutBoxes, generator: torch.Generator) -> Tensor:
    """Cut a picture, with gradients back to it.

    What a rotated cut sees beyond the edge continues the edge. Scorers get all cuts at the picture's own resolution,
    and make them smaller with antialiasing, which sampling a grid has not.

    Args:
        pixels: (1, 3, H, W) in [-1, 1].
        drawn: n cuts.
        generator: on the CPU, for the noise. Each cut's is drawn by itself, so that it does not depend on the chunks.

    Returns:
        (n, 3, S, S), where S is the shorter side.
    """
    count, side = len(drawn.theta), min(pixels.shape[2:])
    grid = F.affine_grid(drawn.theta, [count, 3, side, side], align_corners=False).to(pixels.device)
    views = F.grid_sample(pixels.expand(count, -1, -1, -1), grid, padding_mode="border", align_corners=False)
    noise = torch.stack([torch.randn(3, side, side, generator=generator) for _ in range(count)]) * drawn.noise
    return views * drawn.contrast.to(pixels) + (drawn.brightness + noise).to(pixels)
