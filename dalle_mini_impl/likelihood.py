"""How likely a transformer finds given pictures: one pass over the whole stream."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.stream import Stream
from dalle_mini_impl.transformer import Transformer


@torch.inference_mode()
def image_logits(transformer: Transformer, stream: Stream, text_ids: Sequence[int], image_ids: Tensor) -> Tensor:
    """Scores of every image id at each place, given the caption and the ids before it.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        text_ids: the caption.
        image_ids: (B, h, w) in [0, K).

    Returns:
        (B, h * w, K) in fp32.

    Raises:
        UserError: the image ids have another grid, or one is out of range.
    """
    if image_ids.shape[1:] != stream.config.grid:
        raise UserError(f"image ids of shape {tuple(image_ids.shape)} were given, expected grid {stream.config.grid}")
    if image_ids.numel() and not 0 <= int(image_ids.min()) <= int(image_ids.max()) < stream.config.image_vocab:
        raise UserError(
            f"image ids from {int(image_ids.min())} to {int(image_ids.max())} were given, "
            f"expected 0 to {stream.config.image_vocab - 1}"
        )
    device = transformer.embed.weight.device
    prefix = stream.prefix([text_ids]).to(device).expand(len(image_ids), -1)
    ids = stream.join(prefix, image_ids.to(device))
    hidden = transformer(ids[:, :-1])[:, stream.prefix_length - 1 :]
    return transformer.logits(hidden, stream.image_range).float()


def log_likelihood(transformer: Transformer, stream: Stream, text_ids: Sequence[int], image_ids: Tensor) -> Tensor:
    """Log-probability of each image id given the caption and the ids before it; see `image_logits`.

    Returns:
        (B, h * w) in nats, at most 0.
    """
    scores = F.log_softmax(image_logits(transformer, stream, text_ids, image_ids), -1)
    return scores.gather(-1, image_ids.to(scores.device).flatten(1)[..., None])[..., 0]
