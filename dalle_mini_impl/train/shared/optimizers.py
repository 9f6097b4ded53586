"""Optimizers (AdamW, Muon) and the learning-rate schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.config.training import OptimizerConfig

MUON_MOMENTUM = 0.95
"""Momentum of Muon (Jordan 2024)."""


class Muon(torch.optim.Muon):
    """Muon (Jordan 2024) that also takes convolutions, each as the matrix whose rows are its filters.

    Args:
        weights: (out, in), or (out, in, h, w) in either memory format. Their storage must not change afterwards: the
            matrices are views of it.
        options: those of `torch.optim.Muon`.
    """

    def __init__(self, weights: list[nn.Parameter], **options: Any) -> None:
        matrices = [
            nn.Parameter(as_matrix(weight.detach(), weight)) if weight.ndim == 4 else weight for weight in weights
        ]
        self.convolutions = [pair for pair in zip(matrices, weights, strict=True) if pair[1].ndim == 4]
        super().__init__(matrices, **options)

    def step(self, closure: Any = None) -> Any:
        """Make a step with the gradients of the weights passed to the constructor."""
        for matrix, weight in self.convolutions:
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients."""
        super().zero_grad(set_to_none)
        for _, weight in self.convolutions:
            weight.grad = None


def as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """View a convolution's weight or gradient as a matrix, with columns in the memory order of the weight.

    Args:
        values: (out, in, h, w), the weight or its gradient.
        weight: (out, in, h, w), the weight.

    Returns:
        (out, in × h × w).
    """
    if weight.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: the matrices of transformer blocks and the convolutions of residual blocks.

    Not the narrow matrices of LoRA: the update of their product would not be orthogonal.
    """
    if "lora_" in name:
        return False
    return ".blocks." in f".{name}" if parameter.ndim == 2 else parameter.ndim == 4 and ".conv" in name


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters that are trained, or Muon for the hidden matrices and AdamW for the rest.

    Muon orthogonalises the update of hidden weights. Embeddings, heads and convolutions that change the resolution stay
    with AdamW. Weight decay acts on matrices only, not on norms and biases.
    """
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if config.muon_learning_rate and is_hidden(name, parameter):
            hidden.append(parameter)
        else:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=1e-8, fused=True)
    ]
    if hidden:
        optimizers.append(
            Muon(hidden, lr=config.muon_learning_rate, momentum=MUON_MOMENTUM, weight_decay=config.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def rate_share(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of a step as a share of the peak.

    Linear warmup, then constant until `decay_start`, then a cosine down to `final_rate`.

    Args:
        step: optimizer step, from 0.
        steps: steps of the whole run.
        config: the schedule.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = max(config.warmup_steps, config.decay_start * steps)
    progress = min(max((step - start) / max(steps - start, 1), 0.0), 1.0)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(
    optimizers: list[Any], step: int, steps: int, config: OptimizerConfig, factor: float = 1.0
) -> float:
    """Set every parameter group's learning rate for a step.

    Args:
        optimizers: made by `build_optimizers`.
        step: optimizer step, from 0.
        steps: steps of the whole run.
        config: the schedule.
        factor: factor on the scheduled rate.

    Returns:
        The rate as a share of the peak, `factor` included.
    """
    share = factor * rate_share(step, steps, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
    return share
