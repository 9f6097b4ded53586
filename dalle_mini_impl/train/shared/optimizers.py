"""Optimizers and their learning-rate schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.config.training import OptimizerConfig


class Muon(torch.optim.Muon):
    """Muon (Jordan 2024) that takes convolutions too, each as the matrix whose rows are its filters.

    Args:
        weights: (out, in), or (out, in, h, w) in either memory format; they must keep their memory from here on.
        options: what PyTorch's own takes.
    """

    def __init__(self, weights: list[nn.Parameter], **options: Any) -> None:
        matrices = [
            nn.Parameter(as_matrix(weight.detach(), weight)) if weight.ndim == 4 else weight for weight in weights
        ]
        self.convolutions = [pair for pair in zip(matrices, weights, strict=True) if pair[1].ndim == 4]
        super().__init__(matrices, **options)

    def step(self, closure: Any = None) -> Any:
        """Make a step with the gradients of the weights that were given."""
        for matrix, weight in self.convolutions:
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        super().zero_grad(set_to_none)
        for _, weight in self.convolutions:
            weight.grad = None


def as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """A convolution's weight or gradient (out, in, h, w) -> (out, in × h × w), each row as it lies in the weight."""
    if weight.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a parameter lies between layers of the same width, where Muon works."""
    return ".blocks." in f".{name}" if parameter.ndim == 2 else parameter.ndim == 4 and ".conv" in name


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or for everything but the hidden matrices when Muon is on.

    Weight decay acts on matrices only: decaying norms and biases pulls them from where they work. Muon
    orthogonalises the update of hidden weights: the matrices of transformer blocks and the convolutions of residual
    blocks. Embeddings, heads and convolutions that change the resolution stay with AdamW.
    """
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
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
        optimizers.append(Muon(hidden, lr=config.muon_learning_rate, momentum=0.95, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of a step as a share of the peak.

    Linear warmup, then constant until `decay_start`, then a cosine down to `final_rate`.

    Args:
        step: optimizer step, from 0.
        steps: steps of the whole run.
        config: the schedule's numbers.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = max(config.warmup_steps, config.decay_start * steps)
    progress = min(max((step - start) / max(steps - start, 1), 0.0), 1.0)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizers: list[Any], step: int, steps: int, config: OptimizerConfig, scale: float = 1.0) -> float:
    """Set every group's learning rate for a step and return its share of the peak, `scale` included."""
    share = scale * rate(step, steps, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
    return share
