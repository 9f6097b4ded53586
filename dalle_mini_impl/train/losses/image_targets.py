"""Uncertain image ids as targets: sampled from the image tokenizer's distribution, or the distribution itself.

DALL-E 1's evidence lower bound is an expectation over that distribution. The paper trains on the likeliest ids alone,
because its transformer was too small to overfit its data (Ramesh et al. 2021, footnote 6).
"""

import numpy as np
from torch import Tensor

from dalle_mini_impl.data.token_cache import TokenCache
from dalle_mini_impl.util.errors import UserError

TARGETS = ("argmax", "sampled", "soft")
"""Values of the config key `image_targets`."""


def check_targets(name: str, cache: TokenCache) -> None:
    """Check a value of `image_targets` before training.

    Raises:
        UserError: the value is unknown, or needs probabilities that the cache does not hold.
    """
    if name not in TARGETS:
        raise UserError(f"image_targets is {name!r}; expected {', '.join(TARGETS)}")
    if name != "argmax":
        cache.distribution(0, 0)


def sample_ids(likely_ids: np.ndarray, probabilities: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sample one id per cell.

    Args:
        likely_ids: (h, w, k) ids to sample from.
        probabilities: (h, w, k) their probabilities; the sum over k need not be 1.
        random: source of randomness.

    Returns:
        (h, w) ids.
    """
    cumulative = np.cumsum(probabilities, -1, dtype=np.float64)
    points = random.random((*probabilities.shape[:-1], 1)) * cumulative[..., -1:]
    choice = np.minimum((cumulative <= points).sum(-1, keepdims=True), probabilities.shape[-1] - 1)
    return np.take_along_axis(likely_ids, choice, -1)[..., 0]


def soft_cross_entropy(logits: Tensor, likely_ids: Tensor, probabilities: Tensor) -> Tensor:
    """Mean cross-entropy between predictions and target distributions over a few ids each.

    Args:
        logits: (…, K).
        likely_ids: (…, k) the target distribution's ids.
        probabilities: (…, k) their probabilities, which sum to 1.

    Returns:
        Scalar, in nats.
    """
    return (logits.logsumexp(-1) - (probabilities * logits.gather(-1, likely_ids)).sum(-1)).mean()
