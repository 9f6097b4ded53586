"""Optimizers (AdamW, Muon) and the learning-rate schedule."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dalle_mini_impl.config.training import OptimizerConfig
from dalle_mini_impl.train.shared.muon import Muon

MUON_MOMENTUM = 0.95
"""Momentum of Muon (Jordan 2024)."""


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
            Muon(hidden, config.muon_learning_rate, MUON_MOMENTUM, config.weight_decay, config.muon_every)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


class Together:
    """All optimizers of a run as one, which is what a gradient scaler takes: if one gradient overflows, none steps."""

    def __init__(self, optimizers: Sequence[Any], networks: Sequence[nn.Module]) -> None:
        self.optimizers = optimizers
        self.param_groups = [{"params": list(network.parameters())} for network in networks]

    def step(self) -> None:
        """Step all."""
        for optimizer in self.optimizers:
            optimizer.step()


def apply_gradients(
    accelerator: Accelerator, networks: Sequence[nn.Module], optimizers: Sequence[Any], limit: float
) -> list[Tensor]:
    """Clip the gradients of each network, step all optimizers, and remove the gradients.

    With `fp16`, gradients are unscaled first, and a step whose gradients overflowed is left out.

    Args:
        accelerator: the processes of the run.
        networks: what is trained.
        optimizers: those of all networks.
        limit: largest gradient norm of a network.

    Returns:
        The gradient norm of each network before clipping, a scalar on its device; 0 where it overflowed with `fp16`.
    """
    together: Any = Together(optimizers, networks)
    scaler = accelerator.scaler
    if scaler is not None:
        scaler.unscale_(together)
    norms = [accelerator.clip_grad_norm_(network.parameters(), limit) for network in networks]
    if scaler is not None:
        norms = [norm.nan_to_num(0.0, posinf=0.0) for norm in norms]
        scaler.step(together)
        scaler.update()
    else:
        together.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    return norms


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
    """Set every parameter group's learning rate for a step, and with Muon whose turn it is.

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
            if "turn" in group:
                group["turn"] = step
    return share
