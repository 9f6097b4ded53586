"""How likely a transformer finds given pictures and captions: one pass over the stream."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.stream import Stream, check_ids
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.util.errors import UserError

CHUNK = 64
"""Streams per pass."""


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
    _check(stream, image_ids)
    device = transformer.device
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


@torch.inference_mode()
def text_log_likelihood(transformer: Transformer, stream: Stream, captions: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability of each id of captions given the ids before it.

    Padding counts: it is how a caption ends.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        captions: text ids of each.

    Returns:
        (B, text_length) in nats, at most 0; the sum of a row is log p(text). In a stream without BOS nothing comes
        before the first id, whose column is left out.

    Raises:
        UserError: a caption is too long, or an id is no text id.
    """
    device, parts = transformer.device, []
    for prefix in stream.prefix(captions).to(device).split(CHUNK):
        scores = transformer.logits(transformer(prefix[:, :-1]), stream.text_range).float().log_softmax(-1)
        parts.append(scores.gather(-1, prefix[:, 1:, None])[..., 0])
    return torch.cat(parts)


@torch.inference_mode()
def likelihood_table(
    transformer: Transformer,
    stream: Stream,
    captions: Sequence[Sequence[int]],
    image_ids: Tensor,
    *,
    blind: bool = False,
    progress: Callable[[int], object] = lambda pairs: None,
) -> Tensor:
    """Log-probability of each picture given each caption.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        captions: text ids of each.
        image_ids: (P, h, w) in [0, K).
        blind: hide all ids of the picture (BOS in their place): each is judged by the caption and its place alone, as a
            model knows it that was trained with `id_dropout`. That is no probability of the picture as a whole.
        progress: told how many pairs of a picture and a caption each step has judged.

    Returns:
        (P, captions) in nats, at most 0.

    Raises:
        UserError: the image ids have another grid, an id is out of range, a caption is too long, or `blind` is asked
            of a stream without BOS.
    """
    _check(stream, image_ids)
    if blind and stream.config.bos_id < 0:
        raise UserError("blind was given for a stream without BOS, which would stand for hidden ids; leave it out")
    device = transformer.device
    prefixes, pictures = stream.prefix(captions).to(device), image_ids.to(device).flatten(1)
    judge = _judge_blindly if blind else _judge
    rows = []
    for part in pictures.split(len(pictures) if blind else CHUNK):
        columns = []
        for prefix in prefixes.split(CHUNK if blind else max(1, CHUNK // len(part))):
            columns.append(judge(transformer, stream, prefix, part).T)
            progress(columns[-1].numel())
        rows.append(torch.cat(columns, 1))
    return torch.cat(rows)


def _judge(transformer: Transformer, stream: Stream, prefix: Tensor, pictures: Tensor) -> Tensor:
    """Nats (n, P) of pictures (P, h * w) given captions (n, prefix_length), each of which is run once."""
    cache = transformer.new_cache(len(prefix), stream.prefix_length)
    first = transformer(prefix, cache)[:, -1:].repeat_interleave(len(pictures), 0)
    ids = pictures.repeat(len(prefix), 1)
    hidden = transformer(ids + stream.image_offset, cache.branch(len(pictures), stream.length))[:, :-1]
    scores = transformer.logits(torch.cat([first, hidden], 1), stream.image_range).float().log_softmax(-1)
    return scores.gather(-1, ids[..., None]).sum((1, 2)).view(len(prefix), -1)


def _judge_blindly(transformer: Transformer, stream: Stream, prefix: Tensor, pictures: Tensor) -> Tensor:
    """As `_judge`, no id seeing another: what is seen is the same for all pictures."""
    hidden_ids = prefix.new_full((len(prefix), stream.image_length - 1), stream.config.bos_id)
    hidden = transformer(torch.cat([prefix, hidden_ids], 1))[:, stream.prefix_length - 1 :]
    scores = transformer.logits(hidden, stream.image_range).float().log_softmax(-1)
    return scores.gather(-1, pictures.T.expand(len(prefix), -1, -1)).sum(1)


def _check(stream: Stream, image_ids: Tensor) -> None:
    """Refuse what is no picture of this stream."""
    if image_ids.shape[1:] != stream.config.grid:
        raise UserError(f"image ids of shape {tuple(image_ids.shape)} were given, expected grid {stream.config.grid}")
    check_ids(image_ids, stream.config.image_vocab, "image")
