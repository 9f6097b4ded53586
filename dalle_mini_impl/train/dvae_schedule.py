"""The schedule of DALL-E 1's dVAE (Ramesh et al. 2021, appendix A.2)."""

import math

import torch
from torch import nn

from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.train.shared.loop import generator_for


def set_relaxation(quantizer: nn.Module, config: ImageTokenizerRun, step: int, rows: slice) -> None:
    """Set temperature, KL weight and noise seed for one pass; does nothing for quantizers other than `gumbel`.

    The noise depends on the step and the pass's first row only, so each process samples its own.

    Args:
        quantizer: of the image tokenizer.
        config: settings of the stage; `config.run.steps` is the length of the run.
        step: optimizer step, from 0.
        rows: rows of the global batch in this pass.
    """
    if isinstance(quantizer, Gumbel):
        dvae = config.dvae
        done = step / config.run.steps
        quantizer.temperature.fill_(anneal(*dvae.temperature, done, dvae.temperature_share))
        # The paper sums both losses over a picture and divides by its number of values, which is 3 × factor² per id.
        kl_weight = anneal(0.0, dvae.kl_weight, done, dvae.kl_share)
        quantizer.kl_weight.fill_(kl_weight / (3 * config.model.factor**2))
        torch.manual_seed(generator_for(config.run.seed, step, rows.start).initial_seed())


def anneal(first: float, last: float, done: float, share: float) -> float:
    """Half a cosine from `first` to `last` over the first `share` of a run, then `last`.

    Args:
        first: value at the start of the run.
        last: value after `share` of the run.
        done: share of the run that is done, from 0 to 1.
        share: share of the run over which the value changes; 0 gives `last` throughout.
    """
    progress = min(done / share, 1.0) if share else 1.0
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))
