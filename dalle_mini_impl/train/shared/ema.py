"""Exponential moving average (EMA) of the weights, which is what is validated, sampled from and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dalle_mini_impl.train.shared.fsdp import local_shard


class Ema:
    """Exponential moving average of a model's parameters; buffers are copied.

    The decay rises from 0 to its final value over the first steps, so that the EMA of a short run does not contain the
    random initial weights. Of a sharded model each process averages its own shards.

    Args:
        model: the model; its current weights are the EMA's initial ones.
        decay: final decay per step, in [0, 1); 0 makes the EMA equal to the latest weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.parameter_names = {name for name, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Average in the model's weights after optimizer step `step`, which counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = {name: local_shard(value) for name, value in model.state_dict().items()}
        averages = {name: local_shard(value) for name, value in self.state.items()}
        averaged = [name for name in weights if name in self.parameter_names]
        torch._foreach_lerp_([averages[name] for name in averaged], [weights[name] for name in averaged], 1 - decay)
        for name in weights.keys() - self.parameter_names:
            averages[name].copy_(weights[name])

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the EMA's weights and is in evaluation mode; afterwards its own again.

        Weights are swapped one at a time, so this needs memory for one weight only.
        """
        training = model.training
        self._swap(model.eval())
        try:
            yield
        finally:
            self._swap(model.train(training))

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            model_value = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(model_value)
