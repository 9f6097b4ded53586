"""Watches a run's loss, and goes back to the last good state when it is no number or runs away."""

import copy
import math
from typing import Any

import torch
from torch import nn

from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.util.errors import UserError

DECAY = 0.9
RUNAWAY = 3.0
"""How many times its lowest value the running mean of the error may be."""
CHANCES = 3


class DivergenceGuard:
    """Whether a step's loss is in order, and the last good state of what is trained, in memory, once `keep` was called.

    Args:
        modules: all that is trained.
        optimizers: of those.
        average: of the model.
    """

    def __init__(self, modules: nn.Module, optimizers: list[Any], average: Ema) -> None:
        self.modules, self.optimizers, self.average = modules, optimizers, average
        self.watch = torch.tensor([math.nan, math.inf, 0.0, 0.0], dtype=torch.float64)
        """Running mean of the error, its lowest, how often the rate was halved, and how often in a row. Part of the
        state of a run."""
        self.good: tuple[Any, ...] = ()

    @property
    def rate(self) -> float:
        """What the learning rates are to be multiplied by."""
        return 0.5 ** float(self.watch[2])

    def keep(self, steps: int) -> None:
        """Take the state after so many steps for good."""
        self.watch[3] = 0
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        self.good = copy.deepcopy((steps, self.modules.state_dict(), optimizers, self.average.state, self.watch))

    def accepts(self, error: float, *others: float) -> bool:
        """Whether a step with this error (0 or more) may be made; the other figures need only be numbers."""
        if not all(map(math.isfinite, (error, *others))):
            return False
        mean, lowest = self.watch[:2].tolist()
        mean = error if math.isnan(mean) else DECAY * mean + (1 - DECAY) * error
        self.watch[:2] = torch.tensor([mean, min(mean, lowest)])
        return mean <= RUNAWAY * lowest

    def roll_back(self, step: int, loss: float) -> str:
        """Go back to the last good state with half the learning rate, and say so.

        Raises:
            UserError: it is the third time in a row.
        """
        # A copy: optimizers take over the very tensors they are given.
        steps, modules, optimizers, average, watch = copy.deepcopy(self.good)
        halved, in_a_row = (int(count) + 1 for count in self.watch[2:])
        what = f"step {step + 1}: the loss is {loss:.4g}"
        if in_a_row == CHANCES:
            raise UserError(
                f"{what}, the {CHANCES}rd time in a row that it is no number or runs away; lower "
                f"optimizer.learning_rate or gan.weight, or set run.precision to fp32"
            )
        self.modules.load_state_dict(modules)
        for optimizer, state in zip(self.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)
        for name, value in average.items():
            self.average.state[name].copy_(value)
        self.watch.copy_(torch.tensor([*watch[:2].tolist(), halved, in_a_row]))
        return f"{what}; back to the weights after step {steps}, learning rate × {self.rate:.4g} from here"
