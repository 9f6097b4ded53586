"""Halves the learning rate each time the loss stops falling, as for DALL-E 1 (Ramesh et al. 2021, appendix B.2)."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from dalle_mini_impl.config.training import PlateauConfig
from dalle_mini_impl.util.errors import UserError

LOSSES = ("training", "validation")


class Plateau:
    """Compares the loss from one validation to the next; all processes decide alike.

    Args:
        config: which loss to compare, and when to halve the rate.

    Raises:
        UserError: a setting is unknown or out of range.
    """

    def __init__(self, config: PlateauConfig) -> None:
        if config.loss not in LOSSES:
            raise UserError(f"plateau.loss is {config.loss!r}; expected {' or '.join(LOSSES)}")
        if config.patience < 1:
            raise UserError(f"plateau.patience is {config.patience}; expected 1 or more validations")
        self.config = config
        self.state = torch.tensor([0.0, 0.0, math.inf, 0.0, 0.0], dtype=torch.float64)
        """Sum of this process's losses since the last validation and their number, the value from which a gain counts,
        validations without one, and halvings. Part of the state of a run."""

    @property
    def rate(self) -> float:
        """Factor of the learning rate."""
        return 0.5 ** float(self.state[4])

    def add(self, loss: float) -> None:
        """Add the loss of a training step of this process to the mean."""
        self.state[:2] += torch.tensor([loss, 1.0])

    def look(self, accelerator: Accelerator, validation: float) -> str:
        """Halve the rate if it is due, and return a message, or "". All processes call it after each validation.

        Args:
            accelerator: of the run.
            validation: loss of the validation.
        """
        total, steps, lowest, waited, halvings = self.state.tolist()
        own = total / steps if self.config.loss == "training" else validation
        loss = float(broadcast(accelerator.reduce(torch.tensor(own, device=accelerator.device), "mean")))
        waited += 1
        if loss < lowest * (1 - self.config.min_gain):
            lowest, waited = loss, 0
        halve = waited >= self.config.patience and halvings < self.config.halvings
        self.state = torch.tensor([0.0, 0.0, lowest, 0.0 if halve else waited, halvings + halve], dtype=torch.float64)
        if not halve:
            return ""
        return (
            f"in {self.config.patience} validations the {self.config.loss} loss gained too little on {lowest:.4g}, "
            f"it is {loss:.4g} now; learning rate × {self.rate:.4g} from here"
        )
