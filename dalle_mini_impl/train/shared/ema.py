"""Exponential moving average of the weights (EMA): the weights that are validated, sampled from and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    """Exponential moving average of a model's parameters; buffers are copied as they are.

    The decay grows from 0 to its final value over the first steps, so that short runs do not average in
    their random start. Of a model that is shared out among processes each keeps its own share of the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.names = {name for name, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the EMA after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if name in self.names:
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Put the EMA weights into the model and set it to evaluation mode; restore its own at the end of the block.

        The two change places one weight at a time, so this takes no memory to speak of.
        """
        training = model.training
        self._exchange(model.eval())
        try:
            yield
        finally:
            self._exchange(model.train(training))

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            own = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(own)
