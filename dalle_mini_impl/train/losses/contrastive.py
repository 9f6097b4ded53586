"""The contrastive loss, over one process or many."""

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

CHANCE_MARGIN = 0.02


def contrastive_loss(
    image_embed: Tensor,
    text_embed: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: each picture finds its caption among the batch's, and the reverse (Radford 2021).

    With a bias it is SigLIP's loss (Zhai et al. 2023): every pair of the batch is judged by itself, whether it belongs
    together; summed over captions, mean over pictures.

    Computed in fp32 whatever the inputs are. Across processes give it gathered inputs, see
    `gather_with_gradient`.

    Args:
        image_embed: (B, D), any length; normalised here.
        text_embed: (B, D), row i belongs to picture i; normalised here.
        logit_scale: scalar, logarithm of the factor on the cosines.
        logit_bias: scalar, added to scaled cosines.
        groups: (B,) int64; rows with equal numbers show the same thing, so their pictures and captions all
            fit each other and share the target evenly. None: every row is a thing of its own.

    Returns:
        Scalar, in nats; `chance_level(B)` when nothing is told apart.
    """
    with torch.autocast(image_embed.device.type, enabled=False):
        image_embed = F.normalize(image_embed.float(), dim=-1)
        text_embed = F.normalize(text_embed.float(), dim=-1)
        logits = logit_scale.float().exp() * image_embed @ text_embed.T
        if logit_bias is not None:
            rows = torch.arange(len(logits), device=logits.device) if groups is None else groups
            signs = 2.0 * (rows[:, None] == rows[None, :]) - 1
            return -F.logsigmoid(signs * (logits + logit_bias.float())).sum(dim=1).mean()
        if groups is None:
            targets = torch.arange(len(logits), device=logits.device)
        else:
            same = (groups[:, None] == groups[None, :]).float()
            targets = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def gather_with_gradient(features: Tensor) -> Tensor:
    """Concatenate every process's rows in rank order; the identity on one process.

    Backward sums the gradients that all processes' losses send to the local rows. When each of W processes
    computes the same loss on the gathered rows, local gradients therefore come out W times as large, and the
    averaging of DistributedDataParallel takes that factor away again: parameters get exactly the gradient of
    one process on the whole batch, with no scaling of the loss. Averaging is what makes it exact; without
    it, divide by W.

    Args:
        features: (B, …) of the same shape on every process; integers (such as `groups`) carry no gradient.

    Returns:
        (W * B, …).
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return features
    return _Gather.apply(features)


def chance_level(batch: int, sigmoid: bool = False) -> float:
    """Loss in nats of a model that tells nothing apart among `batch` pairs: ln(batch).

    With `sigmoid` it gives every pair the probability 1 / batch, which costs nearly one nat more.
    """
    alone = (batch - 1) * math.log(batch / (batch - 1)) if sigmoid and batch > 1 else 0.0
    return math.log(batch) + alone


def at_chance(loss: float, batch: int, sigmoid: bool = False) -> bool:
    """Whether a loss is no better than guessing, within 2 %: after the first steps, reason for a warning.

    Args:
        loss: value of `contrastive_loss`, in nats.
        batch: rows it was computed over, all processes together. One row has nothing to be told from.
        sigmoid: whether it was computed with a bias.
    """
    return loss >= (1 - CHANCE_MARGIN) * chance_level(batch, sigmoid)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.rows = len(features)
        features = features.contiguous()
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # The sum goes into a copy: the gradient that came may be shared with others.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)
