"""Logits -> next id, as pure functions: the random numbers come in as arguments.

With one uniform number per id, taken from the candidate's own generator, and settings of its own, a candidate does not
depend on which others are sampled in the same batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import RANKS, SamplingConfig
from dalle_mini_impl.util.errors import UserError

LARGEST = torch.finfo(torch.float32).max
"""The largest number in fp32."""
SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Lower temperatures count as this one: its inverse is still a number in fp32."""
ALL_IDS = 2**31 - 1
"""Stands for `top_k` 0: more than any number of ids."""


@dataclass(frozen=True, eq=False)
class RowSettings:
    """How the next id of each of N rows is sampled, as tensors, so that rows of different settings share a batch.

    Numbers that say whether a step is needed are not on the device, so that nothing waits for it.
    """

    temperature: Tensor
    """(N,) fp32, above 0; 1 where `greedy`."""
    inverse_temperature: Tensor
    """(N,) fp32."""
    top_k: Tensor
    """(N,) int32: how many of the likeliest ids are kept, at most `ALL_IDS`."""
    top_p: Tensor
    """(N,) fp32."""
    greedy: Tensor
    """(N,) bool: whether the likeliest id is taken."""
    smallest_k: int
    """`ALL_IDS` if all rows keep all ids."""
    largest_k: int
    """Of those that are below `ALL_IDS`; 0 if none is."""
    any_top_p: bool
    """Whether any is below 1."""
    any_greedy: bool

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig], device: torch.device | str = "cpu") -> "RowSettings":
        """The settings of rows, one for each."""
        greedy = [config.temperature == 0 for config in configs]
        temperatures = [min(max(c.temperature, SMALLEST_TEMPERATURE), LARGEST) if c.temperature else 1 for c in configs]
        limits = [config.top_k for config in configs if config.top_k]
        return cls(
            torch.tensor(temperatures, dtype=torch.float32, device=device),
            torch.tensor([1 / temperature for temperature in temperatures], dtype=torch.float32, device=device),
            torch.tensor([config.top_k or ALL_IDS for config in configs], dtype=torch.int32, device=device),
            torch.tensor([config.top_p for config in configs], dtype=torch.float32, device=device),
            torch.tensor(greedy, dtype=torch.bool, device=device),
            min(limits, default=ALL_IDS),
            max(limits, default=0),
            any(config.top_p < 1 for config in configs),
            any(greedy),
        )

    def keep(self, rows: Tensor) -> "RowSettings":
        """Those of some rows, (n,) indices."""
        kept: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **kept)


def validate_sampling(config: SamplingConfig, vocab: int) -> None:
    """Check that every setting is in its range.

    Args:
        config: the settings.
        vocab: K, number of ids to choose from.

    Raises:
        UserError: a setting is out of range.
    """
    if not 0 <= config.temperature < math.inf:
        raise UserError(f"expected a temperature of 0 or more, got {config.temperature}; 0 takes the likeliest id")
    if not 0 <= config.top_k <= vocab:
        raise UserError(f"expected top_k from 0 to {vocab}, got {config.top_k}; 0 keeps all ids")
    if not 0 < config.top_p <= 1:
        raise UserError(f"expected top_p above 0 and at most 1, got {config.top_p}; 1 keeps all ids")
    if not 0 <= config.guidance < math.inf:
        raise UserError(f"expected a guidance of 0 or more, got {config.guidance}; 1 switches it off")
    if not 0 <= config.clip_weight < math.inf:
        raise UserError(f"expected a clip_weight of 0 or more, got {config.clip_weight}; 0 ignores the scorer")
    if not 0 <= config.diversity < math.inf:
        raise UserError(f"expected a diversity of 0 or more, got {config.diversity}; 0 keeps the best")
    if config.rank not in RANKS:
        raise UserError(f"expected rank {', '.join(RANKS[:-1])} or {RANKS[-1]}, got {config.rank!r}; choose one")


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): extrapolate from the logits without the caption to those with it.

    Args:
        conditional: (N, K) logits given the caption.
        unconditional: (N, K) logits given no caption, or a negative one.
        scale: 0 gives `unconditional`, 1 gives `conditional`, more exaggerates the difference; one for all rows, or
            (N, 1) for each.

    Returns:
        (N, K).
    """
    return unconditional + scale * (conditional - unconditional)


def next_ids(logits: Tensor, uniforms: Tensor, settings: RowSettings) -> Tensor:
    """Sample the next id of each row: temperature, then top-k, then top-p (nucleus sampling, Holtzman et al. 2020).

    Of equal logits the lower id counts as the likelier one, so that exactly `top_k` ids are kept and results do not
    depend on a sorting algorithm. NaN counts as minus infinity, infinity as the largest number; if all logits of a row
    are minus infinity, id 0 is sampled.

    Args:
        logits: (N, K); not changed.
        uniforms: (N,) uniform random numbers in [0, 1), one per row.
        settings: temperature, top_k, top_p of each row.

    Returns:
        (N,) int64 ids in [0, K).
    """
    logits = logits.masked_fill(logits.isnan(), -math.inf)
    top = logits.amax(-1, keepdim=True)
    # argmax may return any of several maxima; this returns the first.
    likeliest = (logits == top).int().argmax(-1) if settings.any_greedy else None
    # Inverse transform sampling: [0, 1) is divided into one interval per id, in the order of ids, as long as its
    # probability; the id whose interval holds the uniform number is sampled.
    cumulative = torch.softmax(_scale_and_mask(logits, top, settings), -1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    ids = torch.searchsorted(cumulative, uniforms[:, None].to(cumulative.dtype) * total, right=True)
    # Rounding may put a number just below 1 behind the last interval.
    ids = torch.minimum(ids, torch.searchsorted(cumulative, total))[:, 0]
    ids = ids.masked_fill(top[:, 0] == -math.inf, 0)
    return ids if likeliest is None else torch.where(settings.greedy, likeliest, ids)


def id_probabilities(logits: Tensor, settings: RowSettings) -> Tensor:
    """The distribution that `next_ids` samples from, (N, K), of logits that are numbers (N, K)."""
    top = logits.amax(-1, keepdim=True)
    probabilities = torch.softmax(_scale_and_mask(logits, top, settings), -1)
    if not settings.any_greedy:
        return probabilities
    likeliest = torch.nn.functional.one_hot((logits == top).int().argmax(-1), logits.shape[-1])
    return torch.where(settings.greedy[:, None], likeliest.to(probabilities), probabilities)


def _scale_and_mask(logits: Tensor, top: Tensor, settings: RowSettings) -> Tensor:
    """Logits (N, K) divided by the temperature, with minus infinity for the ids that top-k and top-p leave out.

    `top` (N, 1) is the highest of each row.
    """
    logits, top = (values.float().clamp(max=LARGEST) for values in (logits, top))
    temperature = settings.temperature[:, None]
    scaled = logits / temperature
    # Differences overflow to minus infinity, which is harmless, where quotients would to infinity.
    scaled = torch.where((top / temperature).isinf(), (logits - top) / temperature, scaled)
    if settings.smallest_k < scaled.shape[-1]:
        scaled = _mask_all_but_top_k(scaled, settings)
    if settings.any_top_p:
        scaled = _mask_all_but_top_p(scaled, settings.top_p[:, None])
    return scaled


def _mask_all_but_top_k(logits: Tensor, settings: RowSettings) -> Tensor:
    """Logits (N, K) with minus infinity for all but the `top_k` highest of each row."""
    k = settings.top_k[:, None].long()
    most = min(settings.largest_k, logits.shape[-1])
    threshold = logits.topk(most).values.gather(-1, k.clamp(max=most) - 1)
    above = logits > threshold
    ties = logits == threshold
    first_ties = ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True))
    return logits.masked_fill(~(above | first_ties | (k == ALL_IDS)), -math.inf)


def _mask_all_but_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Logits (N, K) with minus infinity for all but the smallest set of likeliest ids with at least probability p."""
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    likelier_mass = torch.softmax(ordered, -1).cumsum(-1).roll(1, -1)  # probability of all likelier ids
    likelier_mass[:, 0].fill_(-1)  # the likeliest id stays, also where p is 0 in fp32
    left_out = (likelier_mass >= p) & (p < 1)
    return torch.empty_like(logits).scatter_(-1, ids, ordered.masked_fill(left_out, -math.inf))
