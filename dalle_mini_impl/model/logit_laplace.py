"""The logit-Laplace distribution of pixels (Ramesh et al. 2021, appendix A.3).

The sigmoid of a Laplace-distributed variable: unlike the distributions behind L1 and L2 losses it has no mass outside
of the range of pixels. Pixels are mapped from [-1, 1] to [0.1, 0.9] first, where the inverse of the sigmoid is finite.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_LOG_SCALE = -3.5
"""Lower bound of the log-scale: at white, the distribution is then as wide as one step of an 8-bit value. The paper has
no bound, but flat backgrounds are soon predicted exactly, and their likelihood would grow without limit."""


def mean_pixels(decoded: Tensor) -> Tensor:
    """Decoder output (B, 6, H, W), locations and log-scales -> pixels (B, 3, H, W) in [-1.25, 1.25]."""
    return (torch.sigmoid(decoded[:, :3].float()) - 0.5) / 0.4


def laplace_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood in nats, averaged over all channels of all pixels.

    Args:
        decoded: (B, 6, H, W) locations and log-scales.
        target: (B, 3, H, W) pixels in [-1, 1].
    """
    location, raw = decoded.float().chunk(2, dim=1)
    log_scale = MIN_LOG_SCALE + F.softplus(raw - MIN_LOG_SCALE)
    mapped = 0.4 * target.float() + 0.5
    distance = (torch.logit(mapped) - location).abs()
    return (distance * (-log_scale).exp() + log_scale + math.log(2) + (mapped * (1 - mapped)).log()).mean()
