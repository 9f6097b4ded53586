"""Image ids that are not certain: drawn from, and judged by, the image tokenizer's distribution over them.

DALL-E 1's bound is an expectation over that distribution, of which the paper takes the likeliest ids alone, as its
transformer was too small for its data to overfit (Ramesh et al. 2021, footnote 6).
"""

from typing import TypeVar

import numpy as np
from torch import Tensor

from dalle_mini_impl.data.token_cache import TokenCache
from dalle_mini_impl.util.errors import UserError

Number = TypeVar("Number", float, Tensor)

TARGETS = ("argmax", "sampled", "soft")


def check_targets(name: str, cache: TokenCache) -> None:
    """Refuse unknown targets, and such as a cache does not have.

    Raises:
        UserError: they are.
    """
    if name not in TARGETS:
        raise UserError(f"image_targets is {name!r}; expected {', '.join(TARGETS)}")
    if name != "argmax":
        cache.distribution(0, 0)


def draw_ids(likely_ids: np.ndarray, shares: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw an id for each place.

    Args:
        likely_ids: (h, w, k) ids to choose from.
        shares: (h, w, k) their probabilities.
        random: source of the choices.

    Returns:
        (h, w) ids.
    """
    reached = np.cumsum(shares, -1, dtype=np.float64)
    points = random.random((*shares.shape[:-1], 1)) * reached[..., -1:]
    choice = np.minimum((reached <= points).sum(-1, keepdims=True), shares.shape[-1] - 1)
    return np.take_along_axis(likely_ids, choice, -1)[..., 0]


def soft_cross_entropy(logits: Tensor, likely_ids: Tensor, shares: Tensor) -> Tensor:
    """Mean cross-entropy in nats of predictions (…, K) against distributions over a few ids.

    Args:
        logits: (…, K).
        likely_ids: (…, k) ids.
        shares: (…, k) their probabilities, which sum to 1.
    """
    return (logits.logsumexp(-1) - (shares * logits.gather(-1, likely_ids)).sum(-1)).mean()


def weighted(text: Number, image: Number, image_weight: float) -> Number:
    """Both losses as one."""
    return (text + image_weight * image) / (1 + image_weight)
