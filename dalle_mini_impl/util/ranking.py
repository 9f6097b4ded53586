"""The order of scores, in which a score that is not a number never wins."""

import torch
from torch import Tensor

from dalle_mini_impl.util.errors import UserError


def best_first(scores: Tensor) -> Tensor:
    """Indices that order scores from the highest to the lowest; torch itself would put not-a-number first.

    Args:
        scores: (..., n) floating point.

    Returns:
        (..., n) int64 along the last dimension: equal scores keep their order, and those that are infinite or not a
        number come last.
    """
    return torch.where(scores.isfinite(), scores, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def check_finite(values: Tensor, what: str, advice: str) -> Tensor:
    """The values, if all of them are finite.

    Args:
        values: of any shape.
        what: they are, for the message.
        advice: what to do about it, for the message.

    Raises:
        UserError: one is infinite or not a number.
    """
    finite = values.isfinite()
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise UserError(f"expected finite {what}, got {count} of {finite.numel()} that are not; {advice}")
    return values
