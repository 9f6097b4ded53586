"""The start of a step of a sampler, from its end."""

from collections.abc import Callable

import torch
from torch import Tensor

SOLVER_STEPS = 50
"""Most evaluations for each step that is inverted."""
MEMORY = 8
"""Earlier evaluations of which the next one is made."""
TOLERANCE = 2**-20
"""Largest difference from the end, as a share of the largest number in it, with which a start is found; a few roundings
of fp32."""


def solve(step: Callable[[Tensor], Tensor], end: Tensor, factor: float) -> Tensor:
    """Find the start of a step by Anderson acceleration (Walker and Ni 2011) of the fixed-point iteration.

    That alone would go on only if the network varied slowly; accelerated it also solves what guidance exaggerates.

    Args:
        step: start -> end, `factor` times the start and something else that depends on it.
        end: where it leads.
        factor: of the start.

    Returns:
        The start, of the shape of `end`; the best one that was found, if none leads there within `TOLERANCE`.
    """
    start = best = end / factor
    least = torch.inf
    starts: list[Tensor] = []
    corrections: list[Tensor] = []
    for _ in range(SOLVER_STEPS):
        difference = end - step(start)
        error = float(difference.abs().max())
        if error < least:
            best, least = start, error
        if not error > TOLERANCE * float(end.abs().max()):
            break
        starts = [*starts, start.cpu().double().flatten()][-MEMORY:]
        corrections = [*corrections, (difference / factor).cpu().double().flatten()][-MEMORY:]
        following = starts[-1] + corrections[-1]
        if len(starts) > 1:
            steps, changes = (torch.stack(values, 1).diff(dim=1) for values in (starts, corrections))
            weights = torch.linalg.lstsq(changes, corrections[-1][:, None]).solution
            following = following - ((steps + changes) @ weights)[:, 0]
        start = following.view_as(start).to(start)
    return best
