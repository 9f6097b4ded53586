"""Detects a loss that is not finite or diverges, and restores the last good state."""

import copy
import math
from typing import Any

import torch
from torch import nn

from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.util.errors import UserError

DECAY = 0.9
"""Decay of the running mean of the error."""
RUNAWAY = 3.0
"""The run has diverged when the running mean of the error exceeds its lowest value by this factor."""
CHANCES = 3
"""Divergences in a row that end the run."""


class DivergenceGuard:
    """Decides whether a step's loss is acceptable, and holds the last good state in memory once `keep` was called.

    Args:
        modules: everything that is trained.
        optimizers: the optimizers of `modules`.
        average: EMA of the model.
    """

    def __init__(self, modules: nn.Module, optimizers: list[Any], average: Ema) -> None:
        self.modules, self.optimizers, self.average = modules, optimizers, average
        self.watch = torch.tensor([math.nan, math.inf, 0.0, 0.0], dtype=torch.float64)
        """Running mean of the error, its lowest value, number of halvings of the rate, and number of them in a row.
        Part of the state of a run."""
        self.good: tuple[Any, ...] = ()

    @property
    def rate(self) -> float:
        """Factor of the learning rates."""
        return 0.5 ** float(self.watch[2])

    def keep(self, steps: int) -> None:
        """Store the state after `steps` steps as the last good one."""
        self.watch[3] = 0
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        self.good = copy.deepcopy((steps, self.modules.state_dict(), optimizers, self.average.state, self.watch))

    def accepts(self, error: float, *others: float) -> bool:
        """Whether to make the optimizer step: the error (0 or more) has not diverged, and all figures are finite."""
        if not all(map(math.isfinite, (error, *others))):
            return False
        mean, lowest = self.watch[:2].tolist()
        mean = error if math.isnan(mean) else DECAY * mean + (1 - DECAY) * error
        self.watch[:2] = torch.tensor([mean, min(mean, lowest)])
        return mean <= RUNAWAY * lowest

    def roll_back(self, step: int, loss: float) -> str:
        """Restore the last good state with half the learning rate, and return a message about it.

        Raises:
            UserError: it is the third time in a row.
        """
        # A copy: optimizers take over the very tensors they are given.
        steps, modules, optimizers, average, watch = copy.deepcopy(self.good)
        halved, in_a_row = (int(count) + 1 for count in self.watch[2:])
        what = f"step {step + 1}: the loss is {loss:.4g}"
        if in_a_row == CHANCES:
            raise UserError(
                f"{what}, the {CHANCES}rd time in a row that it is not finite or diverges; lower "
                f"optimizer.learning_rate or gan.weight, or set run.precision to fp32"
            )
        self.modules.load_state_dict(modules)
        for optimizer, state in zip(self.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)
        for name, value in average.items():
            self.average.state[name].copy_(value)
        self.watch.copy_(torch.tensor([*watch[:2].tolist(), halved, in_a_row]))
        return f"{what}; back to the weights after step {steps}, learning rate × {self.rate:.4g} from here"
