"""The gradient of a contrastive loss over batches of any size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.train.losses.contrastive import contrastive_loss, gather_with_gradient


def backward(
    accelerator: Accelerator, forward: Callable[..., Any], parts: Sequence[tuple[Tensor, Tensor]], groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the loss over all pairs of all processes to the weights.

    Of several parts, only embeddings are kept: each part is embedded once to find the loss and its gradient by every
    embedding, and once more to follow that gradient into the weights (Gao et al. 2021, GradCache). That takes the
    memory of one part, and a second forward pass.

    With several captions for each picture, the loss is the mean over the first, second and further captions of all.

    Args:
        accelerator: of the run.
        forward: pixels (b, 3, S, S) and text ids (M × b, L), each picture's M captions in a row, to embeddings
            (b, D) and (M × b, D), the logarithm of the scale, and a bias or None; the same each time.
        parts: what it takes, each of the same size.
        groups: (B,) of all parts together, see `contrastive_loss`.

    Returns:
        Loss and scale's logarithm, without gradients.
    """

    def embed(part: tuple[Tensor, Tensor]) -> list[Tensor]:
        with accelerator.autocast():
            image, text, *numbers = forward(*(side.to(accelerator.device) for side in part))
        return [image.float(), text.float(), *(number for number in numbers if number is not None)]

    twice = len(parts) > 1
    with torch.set_grad_enabled(not twice):
        images, texts, *numbers = zip(*map(embed, parts), strict=True)
        found = [torch.cat(images), torch.cat(texts), *(alike[0] for alike in numbers)]
    if twice:
        found = [value.detach().requires_grad_() for value in found]
    image, text = (gather_with_gradient(value) for value in found[:2])
    scale, bias = found[2], found[3] if len(found) > 3 else None
    groups = gather_with_gradient(groups.to(accelerator.device))
    captions = text.unflatten(0, (len(image), -1)).unbind(1)
    loss = torch.stack([contrastive_loss(image, one, scale, bias, groups) for one in captions]).mean()
    accelerator.backward(loss)
    if twice:
        rows = zip(*(value.grad.chunk(len(parts)) for value in found[:2]), strict=True)
        shares = [value.grad / len(parts) for value in found[2:]]
        for part, slopes in zip(parts, rows, strict=True):
            followed = [(value * slope).sum() for value, slope in zip(embed(part), (*slopes, *shares), strict=True)]
            accelerator.backward(torch.stack(followed).sum())
    return loss.detach(), scale.detach()
