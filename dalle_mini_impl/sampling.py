"""Logits -> next id. Pure functions: nothing is drawn here, randomness comes in as numbers in [0, 1).

With one such number per step, drawn from a candidate's own generator, a candidate does not depend on which
others are sampled beside it.
"""

import math

import torch
from torch import Tensor

from dalle_mini_impl.config import SamplingConfig
from dalle_mini_impl.errors import UserError


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
    ordered, ids = torch.sort(logits.float() / config.temperature, dim=-1, descending=True, stable=True)
    if config.top_k:
        ordered, ids = ordered[:, : config.top_k], ids[:, : config.top_k]
    cumulative = torch.softmax(ordered, -1).cumsum(-1)
    # Total probability of the kept ids: the first place where the sum reaches top_p ends the list.
    last = (cumulative < config.top_p).sum(-1, keepdim=True).clamp(max=cumulative.shape[-1] - 1)
    total = cumulative.gather(-1, last)
    place = torch.searchsorted(cumulative, uniform[:, None].to(cumulative.dtype) * total, right=True)
    return ids.gather(-1, torch.minimum(place, last))[:, 0]
