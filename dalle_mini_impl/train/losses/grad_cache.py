"""The gradient of a contrastive loss over batches larger than memory (Gao et al. 2021, GradCache)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.train.losses.contrastive import contrastive_loss, gather_with_gradient
from dalle_mini_impl.train.shared.loop import exchanging_in_last


def backward(
    accelerator: Accelerator,
    forward: Callable[..., Any],
    chunks: Sequence[tuple[Tensor, Tensor]],
    groups: Tensor,
    unmatched: int = 0,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the loss over all pairs of all processes to the weights.

    With several chunks each is embedded twice: once without gradients, to compute the loss and its gradient with
    respect to every embedding; once more to propagate that gradient to the weights. That takes the memory of one chunk
    and a second forward pass.

    With M captions per picture, the loss is the mean of M losses, each over one caption of every picture.

    Args:
        accelerator: the processes of the run.
        forward: maps pixels (b + `unmatched`, 3, S, S) and text ids (M × b, L), the M captions of a picture in a row,
            to embeddings (b + `unmatched`, D) and (M × b, D), the logarithm of the scale, and a bias or None; must be
            deterministic.
        chunks: this process's batch as arguments of `forward`, all of the same size.
        groups: (B,) of all chunks together, see `contrastive_loss`.
        unmatched: number of pictures at the end of each chunk that have no captions and match none.

    Returns:
        The loss and the logarithm of the scale, without gradients.
    """

    def embed(chunk: tuple[Tensor, Tensor]) -> list[Tensor]:
        with accelerator.autocast():
            image, text, *scale_and_bias = forward(*(side.to(accelerator.device) for side in chunk))
        return [image.float(), text.float(), *(scalar for scalar in scale_and_bias if scalar is not None)]

    embed_twice = len(chunks) > 1
    with torch.set_grad_enabled(not embed_twice):
        images, texts, *scalars = zip(*map(embed, chunks), strict=True)
        outputs = [torch.cat(images), torch.cat(texts), *(same_in_all_chunks[0] for same_in_all_chunks in scalars)]
    if embed_twice:
        outputs = [output.detach().requires_grad_() for output in outputs]
    by_chunk = outputs[0].unflatten(0, (len(chunks), -1))
    pairs = by_chunk.shape[1] - unmatched
    image, text = (gather_with_gradient(output) for output in (by_chunk[:, :pairs].flatten(0, 1), outputs[1]))
    others = gather_with_gradient(by_chunk[:, pairs:].flatten(0, 1)) if unmatched else None
    scale = outputs[2]
    bias = outputs[3] if len(outputs) > 3 else None
    groups = gather_with_gradient(groups.to(accelerator.device))
    captions = text.unflatten(0, (len(image), -1)).unbind(1)
    losses = [contrastive_loss(image, caption, scale, bias, groups, others) for caption in captions]
    loss = torch.stack(losses).mean()
    accelerator.backward(loss)
    if embed_twice:
        embedding_gradients = zip(*(output.grad.chunk(len(chunks)) for output in outputs[:2]), strict=True)
        scalar_gradients = [output.grad / len(chunks) for output in outputs[2:]]
        passes = list(zip(chunks, embedding_gradients, strict=True))
        for chunk, gradients in exchanging_in_last(passes, forward):
            products = [
                (output * gradient).sum()
                for output, gradient in zip(embed(chunk), (*gradients, *scalar_gradients), strict=True)
            ]
            torch.stack(products).sum().backward()  # not scaled: with fp16 the embeddings' gradients are already
    return loss.detach(), scale.detach()
