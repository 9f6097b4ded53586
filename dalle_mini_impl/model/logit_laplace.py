"""The logit-Laplace distribution of pixels (Ramesh et al. 2021, appendix A.3).

A Laplace distribution behind a sigmoid: unlike L1 or L2, it gives no weight to values that pixels cannot have.
Pixels are mapped from [-1, 1] to [0.1, 0.9] first, where the sigmoid's inverse is finite.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHARPEST = -3.5
"""Lowest log-scale: at white, the distribution is then as wide as one step of a byte. The paper has none, but flat
backgrounds, which are exactly right before long, would let the likelihood grow without end."""


def mean_pixels(decoded: Tensor) -> Tensor:
    """Decoder output (B, 6, H, W), locations and log-scales -> pixels (B, 3, H, W) in [-1.25, 1.25]."""
    return (torch.sigmoid(decoded[:, :3].float()) - 0.5) / 0.4


def laplace_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood in nats, mean over all values of all pixels.

    Args:
        decoded: (B, 6, H, W) locations and log-scales.
        target: (B, 3, H, W) pixels in [-1, 1].
    """
    location, raw = decoded.float().chunk(2, dim=1)
    log_scale = SHARPEST + F.softplus(raw - SHARPEST)
    wanted = 0.4 * target.float() + 0.5
    distance = (torch.logit(wanted) - location).abs()
    return (distance * (-log_scale).exp() + log_scale + math.log(2) + (wanted * (1 - wanted)).log()).mean()
