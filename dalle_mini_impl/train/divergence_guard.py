"""Detects a diverging loss, and returns to the last good state with half the learning rate."""

import copy
import math
from typing import Any

import torch
from torch import nn

from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.util.errors import UserError

ERROR_DECAY = 0.9
"""Decay per step of the running mean of the error."""
DIVERGENCE_RATIO = 3.0
"""The run has diverged when the running mean exceeds its lowest value by this factor."""
MAX_ROLLBACKS = 3
"""Rollbacks in a row without a good state in between, at which the run ends."""


class DivergenceGuard:
    """Checks the loss of each step, and holds the last good state in memory once `save_good_state` was called.

    Args:
        modules: everything that is trained.
        optimizers: those of the modules.
        ema: of the model.
    """

    def __init__(self, modules: nn.Module, optimizers: list[Any], ema: Ema) -> None:
        self.modules = modules
        self.optimizers = optimizers
        self.ema = ema
        self.state = torch.tensor([math.nan, math.inf, 0.0, 0.0], dtype=torch.float64)
        """Running mean of the error, its lowest value, number of halvings of the learning rate, and number of rollbacks
        in a row. Part of the resumable state."""
        self.good_state: tuple[Any, ...] = ()

    @property
    def rate_factor(self) -> float:
        """Factor on the learning rates."""
        return 0.5 ** float(self.state[2])

    def save_good_state(self, steps: int) -> None:
        """Copy the current state, after that many steps, as the one to return to."""
        self.state[3] = 0
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        self.good_state = copy.deepcopy((steps, self.modules.state_dict(), optimizers, self.ema.state, self.state))

    def accepts(self, error: float, *others: float) -> bool:
        """Whether a step may be applied.

        Args:
            error: reconstruction error of the step, 0 or more; its running mean must not diverge.
            *others: figures that only need to be finite.
        """
        if not all(map(math.isfinite, (error, *others))):
            return False
        mean, lowest = self.state[:2].tolist()
        mean = error if math.isnan(mean) else ERROR_DECAY * mean + (1 - ERROR_DECAY) * error
        self.state[:2] = torch.tensor([mean, min(mean, lowest)])
        return mean <= DIVERGENCE_RATIO * lowest

    def roll_back(self, step: int, loss: float) -> str:
        """Restore the last good state and halve the learning rate.

        Args:
            step: the step that was not accepted, from 0.
            loss: its loss.

        Returns:
            A line for the log.

        Raises:
            UserError: it is the third rollback in a row.
        """
        # A copy, because optimizers keep the tensors that they load.
        steps, modules, optimizers, ema_state, guard_state = copy.deepcopy(self.good_state)
        halvings, rollbacks = (int(count) + 1 for count in self.state[2:])
        diagnosis = f"step {step + 1}: the loss is {loss:.4g}"
        if rollbacks == MAX_ROLLBACKS:
            raise UserError(
                f"{diagnosis}, not finite or diverging for the {MAX_ROLLBACKS}rd time in a row; lower "
                f"optimizer.learning_rate or gan.weight, or set run.precision to fp32"
            )
        self.modules.load_state_dict(modules)
        for optimizer, state in zip(self.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(state)
        for name, value in ema_state.items():
            self.ema.state[name].copy_(value)
        self.state.copy_(torch.tensor([*guard_state[:2].tolist(), halvings, rollbacks]))
        return f"{diagnosis}; back to the weights after step {steps}, learning rate × {self.rate_factor:.4g} from here"
