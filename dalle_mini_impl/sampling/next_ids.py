"""Logits -> next id. Pure functions: nothing is drawn here, randomness comes in as numbers in [0, 1).

With one such number per step, drawn from a candidate's own generator, a candidate does not depend on which
others are sampled beside it.
"""

import math

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import RANKS, SamplingConfig
from dalle_mini_impl.util.errors import UserError


def check(config: SamplingConfig, vocab: int) -> None:
    """Refuse settings that make no sense.

    Args:
        config: the settings.
        vocab: K, number of ids to choose from.

    Raises:
        UserError: naming the setting, its value and its range.
    """
    if not 0 <= config.temperature < math.inf:
        raise UserError(f"temperature {config.temperature} was given, expected 0 or more")
    if not 0 <= config.top_k <= vocab:
        raise UserError(f"top_k {config.top_k} was given, expected 0 (all) to {vocab}")
    if not 0 < config.top_p <= 1:
        raise UserError(f"top_p {config.top_p} was given, expected more than 0 and at most 1")
    if not 0 <= config.guidance < math.inf:
        raise UserError(f"guidance {config.guidance} was given, expected 0 or more (1 is off)")
    if config.rank not in RANKS:
        raise UserError(f"rank {config.rank!r} was given, expected one of {', '.join(RANKS)}")


def guide(conditional: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): move away from what the model says without the caption.

    Args:
        conditional: (N, K) logits given the caption.
        null: (N, K) logits given no caption, or a negative one.
        scale: 0 gives `null`, 1 gives `conditional`, more exaggerates the difference.
    """
    return null + scale * (conditional - null)


def next_ids(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Draw the next id of each row.

    Of equal logits the lower id counts as the likelier, so that exactly `top_k` ids are kept and results do
    not depend on a sort's whims.

    Args:
        logits: (N, K); not changed.
        uniform: (N,) numbers in [0, 1), one draw each.
        config: temperature, top_k, top_p.

    Returns:
        (N,) int64 ids in [0, K).
    """
    if config.temperature == 0:
        # argmax may return any of several maxima: ask for the first
        return (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    scores = logits.float() / config.temperature
    if 0 < config.top_k < scores.shape[-1]:
        scores = _keep_top_k(scores, config.top_k)
    if config.top_p < 1:
        scores = _keep_top_p(scores, config.top_p)
    # Each id owns a stretch of [0, 1) as long as its probability, in the order of the ids.
    cumulative = torch.softmax(scores, -1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    place = torch.searchsorted(cumulative, uniform[:, None].to(cumulative.dtype) * total, right=True)
    # Rounding may put a number just below 1 behind the last stretch.
    return torch.minimum(place, torch.searchsorted(cumulative, total))[:, 0]


def _keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Scores (N, K) with all but the k highest of each row at minus infinity."""
    lowest = scores.topk(k, sorted=False).values.amin(-1, keepdim=True)
    above, ties = scores > lowest, scores == lowest
    first_ties = ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True))
    return scores.masked_fill(~(above | first_ties), -math.inf)


def _keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Scores (N, K) with minus infinity for all but the fewest likeliest ids whose probabilities reach p."""
    ordered, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    before = torch.softmax(ordered, -1).cumsum(-1).roll(1, -1)
    before[:, 0] = 0
    return torch.empty_like(scores).scatter_(-1, ids, ordered.masked_fill(before >= p, -math.inf))
