"""Operations whose gradients are not their derivatives, and the distance between embeddings."""

from typing import Any

import torch
from torch import Tensor


def nearest_ids(z: Tensor, table: Tensor) -> Tensor:
    """Ids (B, h, w) of the vectors of `table` (K, D) that are nearest to z (B, D, h, w)."""
    return (table.square().sum(1) - 2 * z.permute(0, 2, 3, 1) @ table.T).argmin(-1)


def straight_through(z: Tensor, table: Tensor) -> Tensor:
    """Quantize z (B, D, h, w) to the nearest vectors of `table` (K, D), with the straight-through gradient.

    The gradient is passed on to z as if nothing had been quantized (Bengio et al. 2013; VQ-VAE, van den Oord et al.
    2017).
    """
    return z + (table[nearest_ids(z, table)].permute(0, 3, 1, 2) - z).detach()


class _ClampWithInwardGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        clamped = x.clamp(low, high)
        ctx.save_for_backward(x - clamped)
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (excess,) = ctx.saved_tensors
        # Descent moves against the gradient: where both have the same sign, it moves x back into the range.
        return gradients[0] * (gradients[0] * excess >= 0), None, None


def clamp_with_inward_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp to [low, high]; values outside keep the gradient if descent moves them towards the range, else get 0.

    An ordinary clamp has no gradient there, so that values that have left the range could never return.
    """
    return _ClampWithInwardGradient.apply(x, low, high)


def stop_gradient_below(distance: Tensor, threshold: Tensor) -> Tensor:
    """The distance unchanged, with gradient only where it is above `threshold`: closer than that it is not reduced."""
    return distance.maximum(threshold) + (distance - distance.maximum(threshold)).detach()


def half_squared_angle(a: Tensor, b: Tensor) -> Tensor:
    """θ²/2 in squared radians, where θ is the angle between unit vectors a and b (…, D); from 0 to π²/2.

    This is half the squared great-circle distance on the unit sphere. It is computed from the chord, |a - b| =
    2 sin(θ/2): the arc cosine of the dot product has no finite gradient where the vectors meet.
    """
    return 2 * ((a - b).norm(dim=-1) / 2).clamp(max=1 - 1e-6).arcsin().square()
