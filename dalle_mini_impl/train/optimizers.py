"""Optimizers and their learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from dalle_mini_impl.train.runs import OptimizerConfig


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or for everything but the hidden matrices when Muon is on.

    Weight decay acts on matrices only: decaying norms and biases pulls them from where they work. Muon
    (Jordan 2024) orthogonalises the update of hidden 2-D weights; embeddings and heads stay with AdamW, as
    do convolutions.
    """
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if config.muon_learning_rate and parameter.ndim == 2 and ".blocks." in f".{name}":
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
            torch.optim.Muon(hidden, lr=config.muon_learning_rate, momentum=0.95, weight_decay=config.weight_decay)
        )
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
