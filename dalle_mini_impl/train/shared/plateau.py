"""Halves the learning rate when the loss stops falling, as for DALL-E 1 (Ramesh et al. 2021, appendix B.2)."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from dalle_mini_impl.config.training import PlateauConfig
from dalle_mini_impl.util.errors import UserError

LOSSES = ("training", "validation")
"""Values of the config key `plateau.loss`."""


class Plateau:
    """Compares the loss of one validation round with those before; all processes come to the same result.

    Args:
        config: which loss to compare, and when to halve the rate.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(self, config: PlateauConfig) -> None:
        if config.loss not in LOSSES:
            raise UserError(f"plateau.loss is {config.loss!r}; expected {' or '.join(LOSSES)}")
        if config.patience < 1:
            raise UserError(f"plateau.patience is {config.patience}; expected 1 or more validations")
        self.config = config
        self.state = torch.tensor([0.0, 0.0, math.inf, 0.0, 0.0], dtype=torch.float64)
        """Sum and number of this process's training losses since the last validation, lowest loss so far, validations
        since then, and number of halvings. Part of the resumable state."""

    @property
    def rate_factor(self) -> float:
        """Factor on the learning rate."""
        return 0.5 ** float(self.state[4])

    def add(self, loss: float) -> None:
        """Count the loss of one training step of this process."""
        self.state[:2] += torch.tensor([loss, 1.0])

    def after_validation(self, accelerator: Accelerator, validation_loss: float) -> str:
        """Halve the rate if the loss has stopped falling; all processes must call this after each validation.

        Args:
            accelerator: the processes of the run.
            validation_loss: loss of this validation.

        Returns:
            A line for the log if the rate was halved, otherwise an empty one.
        """
        total, steps, lowest, waited, halvings = self.state.tolist()
        own_loss = total / steps if self.config.loss == "training" else validation_loss
        loss = float(broadcast(accelerator.reduce(torch.tensor(own_loss, device=accelerator.device), "mean")))
        waited += 1
        if loss < lowest * (1 - self.config.min_gain):
            lowest = loss
            waited = 0
        halve = waited >= self.config.patience and halvings < self.config.halvings
        self.state = torch.tensor([0.0, 0.0, lowest, 0.0 if halve else waited, halvings + halve], dtype=torch.float64)
        if not halve:
            return ""
        return (
            f"the {self.config.loss} loss improved too little on {lowest:.4g} in {self.config.patience} validations, "
            f"it is {loss:.4g} now; learning rate × {self.rate_factor:.4g} from here"
        )
