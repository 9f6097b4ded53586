"""The gradient of a contrastive loss over batches of any size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.scorer import contrastive_loss, gather_with_gradient


def backward(
    accelerator: Accelerator, forward: Callable[..., Any], parts: Sequence[tuple[Tensor, Tensor]], groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the loss over all pairs of all processes to the weights.

    Of several parts, only embeddings are kept: each part is embedded once to find the loss and its gradient by every
    embedding, and once more to follow that gradient into the weights (Gao et al. 2021, GradCache). That takes the
    memory of one part, and a second forward pass.

    Args:
        accelerator: of the run.
        forward: pixels (b, 3, S, S) and text ids (b, L) to embeddings (b, D) of both and the logarithm of the scale,
            the same each time.
        parts: what it takes, each of the same size.
        groups: (B,) of all parts together, see `contrastive_loss`.

    Returns:
        Loss and scale's logarithm, without gradients.
    """

    def embed(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        with accelerator.autocast():
            image, text, scale = forward(*(side.to(accelerator.device) for side in part))
        return image.float(), text.float(), scale

    twice = len(parts) > 1
    with torch.set_grad_enabled(not twice):
        images, texts, scales = zip(*map(embed, parts), strict=True)
        image, text, scale = torch.cat(images), torch.cat(texts), scales[0]
    if twice:
        image, text, scale = (value.detach().requires_grad_() for value in (image, text, scale))
    gathered = [gather_with_gradient(value) for value in (image, text)]
    loss = contrastive_loss(*gathered, scale, gather_with_gradient(groups.to(accelerator.device)))
    accelerator.backward(loss)
    if twice:
        slopes = zip(*(value.grad.chunk(len(parts)) for value in (image, text)), strict=True)
        for part, slope in zip(parts, slopes, strict=True):
            again = embed(part)
            followed = (value * one for value, one in zip(again, (*slope, scale.grad / len(parts)), strict=True))
            accelerator.backward(torch.stack([value.sum() for value in followed]).sum())
    return loss.detach(), scale.detach()
