"""Functions whose gradients are not quite their own, and the distance that pictures are moved along."""

from typing import Any

import torch
from torch import Tensor


def nearest(z: Tensor, table: Tensor) -> Tensor:
    """Ids (B, h, w) of the vectors of `table` (K, D) that are nearest to z (B, D, h, w)."""
    return (table.square().sum(1) - 2 * z.permute(0, 2, 3, 1) @ table.T).argmin(-1)


def straight_through(z: Tensor, table: Tensor) -> Tensor:
    """The nearest vectors of `table` (K, D), in the shape of z (B, D, h, w); gradients reach z as if it were used."""
    return z + (table[nearest(z, table)].permute(0, 3, 1, 2) - z).detach()


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        inside = x.clamp(low, high)
        ctx.save_for_backward(x - inside)
        return inside

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (outside,) = ctx.saved_tensors
        # Descent moves against the gradient: where both signs are the same, it comes back inside.
        return gradients[0] * (gradients[0] * outside >= 0), None, None


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp, with gradients everywhere but where descent would push a value that is outside further out."""
    return _Clamp.apply(x, low, high)


def stop_at(distance: Tensor, stop: Tensor) -> Tensor:
    """The distance, without gradient where it is below `stop`: what is near enough is pulled no nearer."""
    return distance.maximum(stop) + (distance - distance.maximum(stop)).detach()


def half_square_angle(a: Tensor, b: Tensor) -> Tensor:
    """θ²/2 of the angle θ between unit vectors (…, D), 0 to π²/2.

    By the chord between them: the arc cosine of their product has no gradient where they meet.
    """
    return 2 * ((a - b).norm(dim=-1) / 2).clamp(max=1 - 1e-6).arcsin().square()
