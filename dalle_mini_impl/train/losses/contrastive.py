"""The contrastive loss of CLIP and of SigLIP, over one process or many."""

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

CHANCE_MARGIN = 0.02
"""A loss within this share below chance level counts as chance."""


def contrastive_loss(
    image_embed: Tensor,
    text_embed: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    groups: Tensor | None = None,
    unmatched: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: classify each picture's caption among the batch's, and the reverse (Radford et al. 2021).

    With a bias it is SigLIP's loss (Zhai et al. 2023): a binary classification of every pair of the batch, match or
    not; sum over captions, mean over pictures.

    Computed in fp32 for inputs of any precision. With several processes it takes gathered inputs, see
    `gather_with_gradient`.

    Args:
        image_embed: (B, D), of any norm; normalised here.
        text_embed: (B, D), of any norm, row i is a caption of picture i; normalised here.
        logit_scale: scalar, logarithm of the factor on the cosine similarities.
        logit_bias: scalar, added to the scaled similarities.
        groups: (B,) int64; rows with equal values show the same concept, so all their pictures match all their
            captions, with the target probability spread evenly. None: every row matches itself only.
        unmatched: (n, D), of any norm, further pictures that match no caption: captions must tell them apart from
            their own, and they have none to be classified by.

    Returns:
        Scalar, in nats; `chance_level(B, unmatched=n)` for a model that cannot distinguish the pictures.
    """
    with torch.autocast(image_embed.device.type, enabled=False):
        image_embed = F.normalize(image_embed.float(), dim=-1)
        text_embed = F.normalize(text_embed.float(), dim=-1)
        pairs, others = len(text_embed), 0
        if unmatched is not None:
            image_embed, others = torch.cat([image_embed, F.normalize(unmatched.float(), dim=-1)]), len(unmatched)
        logits = logit_scale.float().exp() * image_embed @ text_embed.T
        rows = torch.arange(pairs, device=logits.device) if groups is None else groups
        same = (rows[:, None] == rows[None, :]).float()
        if logit_bias is not None:
            signs = F.pad(2.0 * same - 1, (0, 0, 0, others), value=-1.0)
            return -F.logsigmoid(signs * (logits + logit_bias.float())).sum(dim=1).sum() / pairs
        targets = same / same.sum(dim=1, keepdim=True)
        of_captions = F.pad(targets, (0, others))
        return (F.cross_entropy(logits[:pairs], targets) + F.cross_entropy(logits.T, of_captions)) / 2


def gather_with_gradient(features: Tensor) -> Tensor:
    """Concatenate every process's rows in rank order; the identity on one process.

    The backward pass sums the gradients of all processes' losses with respect to the local rows. If each of W processes
    computes the same loss on the gathered rows, local gradients are W times too large, and the averaging of
    DistributedDataParallel divides them by W: parameters get exactly the gradient of one process with the whole batch,
    without scaling the loss. Without that averaging, divide the loss by W.

    Args:
        features: (B, …), of the same shape in every process; integers (such as `groups`) have no gradient.

    Returns:
        (W * B, …).
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return features
    return _Gather.apply(features)


def chance_level(batch: int, sigmoid: bool = False, unmatched: int = 0) -> float:
    """Loss in nats of a model that cannot distinguish `batch` pairs: ln(batch).

    With `unmatched` further pictures a caption has more pictures to choose from, while a picture has not more captions.
    With `sigmoid` such a model gives a caption and any picture the probability 1 / pictures of matching; the mismatched
    ones add nearly one nat.
    """
    pictures = batch + unmatched
    if not sigmoid:
        return (math.log(batch) + math.log(pictures)) / 2
    mismatched = (pictures - 1) * math.log(pictures / (pictures - 1)) if pictures > 1 else 0.0
    return math.log(pictures) + mismatched


def at_chance(loss: float, batch: int, sigmoid: bool = False, unmatched: int = 0) -> bool:
    """Whether a loss is no better than guessing, within 2 %.

    Args:
        loss: value of `contrastive_loss`, in nats.
        batch: rows it was computed over, all processes together.
        sigmoid: whether it was computed with a bias.
        unmatched: further pictures that it was computed over.
    """
    return loss >= (1 - CHANCE_MARGIN) * chance_level(batch, sigmoid, unmatched)


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.rows = len(features)
        features = features.contiguous()
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Summed in a copy: autograd may use the incoming gradient elsewhere.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)
