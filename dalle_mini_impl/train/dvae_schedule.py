"""The schedule of DALL-E 1's dVAE (Ramesh et al. 2021, appendix A.2)."""

import math

import torch
from torch import nn

from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.train.shared.loop import generator_for


def set_relaxation(quantizer: nn.Module, config: ImageTokenizerRun, step: int, rows: slice) -> None:
    """Set temperature, divergence weight and noise of one pass of a step; nothing to do for other quantizers.

    The noise follows from the step and the first row alone, so that each process draws its own.
    """
    if isinstance(quantizer, Gumbel):
        done, dvae = step / config.run.steps, config.dvae
        quantizer.temperature.fill_(anneal(*dvae.temperature, done, dvae.temperature_share))
        # The paper sums both losses over a picture and divides by its values, of which an id stands for 3 × factor².
        weight = anneal(0.0, dvae.kl_weight, done, dvae.kl_share)
        quantizer.kl_weight.fill_(weight / (3 * config.model.factor**2))
        torch.manual_seed(generator_for(config.run.seed, step, rows.start).initial_seed())


def anneal(first: float, last: float, done: float, share: float) -> float:
    """Half a cosine from `first` to `last` over the given share of a run, of which so much is done; then `last`."""
    progress = min(done / share, 1.0) if share else 1.0
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))
