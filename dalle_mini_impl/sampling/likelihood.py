"""Log-probabilities of given pictures and captions under the transformer: one pass over the stream, no sampling."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream, check_ids
from dalle_mini_impl.sampling.decoding import run_prompts
from dalle_mini_impl.util.errors import UserError

CHUNK = 64
"""Streams per pass, which bounds memory."""


@torch.inference_mode()
def image_logits(
    transformer: Decoder,
    stream: Stream,
    text_ids: Sequence[int],
    image_ids: Tensor,
    image_embed: Sequence[float] = (),
) -> Tensor:
    """Logits of every image id at each cell, given the caption and the ids before it.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        text_ids: the caption.
        image_ids: (B, h, w) in [0, K).
        image_embed: of all rows, as `Prompt.image_embed`.

    Returns:
        (B, h * w, K) in fp32.

    Raises:
        UserError: the image ids have another grid, one is out of range, or the embedding does not fit the stream.
    """
    image_ids = _checked(stream, image_ids)
    device = transformer.device
    prefix = stream.prefix([text_ids]).to(device).expand(len(image_ids), -1)
    ids = stream.join(prefix, image_ids.to(device))
    embed = _embed_rows(transformer, stream, image_embed, len(ids))
    hidden = transformer(ids[:, :-1], None, embed)[:, stream.prefix_length - 1 :]
    logits = transformer.logits(hidden, stream.image_range).float()
    return stream.to_grid(logits.transpose(1, 2)).flatten(2).transpose(1, 2)


def log_likelihood(
    transformer: Decoder,
    stream: Stream,
    text_ids: Sequence[int],
    image_ids: Tensor,
    image_embed: Sequence[float] = (),
) -> Tensor:
    """Log-probability of each image id given the caption and the ids before it.

    Args:
        transformer: see `image_logits`.
        stream: see `image_logits`.
        text_ids: see `image_logits`.
        image_ids: see `image_logits`.
        image_embed: see `image_logits`.

    Returns:
        (B, h * w) in nats, at most 0.

    Raises:
        UserError: see `image_logits`.
    """
    log_probabilities = F.log_softmax(image_logits(transformer, stream, text_ids, image_ids, image_embed), -1)
    ids = image_ids.to(log_probabilities.device, torch.int64)
    return log_probabilities.gather(-1, ids.flatten(1)[..., None])[..., 0]


@torch.inference_mode()
def text_log_likelihood(
    transformer: Decoder, stream: Stream, captions: Sequence[Sequence[int]], image_embed: Sequence[float] = ()
) -> Tensor:
    """Log-probability of each id of captions given the ids before it.

    Padding is part of a caption: its first padding id is how it ends.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        captions: text ids of each.
        image_embed: of a picture that all captions are for, as `Prompt.image_embed`.

    Returns:
        (B, text_length) in nats, at most 0; the sum of a row is log p(text). In a stream with nothing before the text
        the first id is conditioned on nothing, and its column is left out.

    Raises:
        UserError: a caption is too long, an id is no text id, or the embedding does not fit the stream.
    """
    parts = []
    first = max(1, stream.text_offset)
    for prefix in stream.prefix(captions).to(transformer.device).split(CHUNK):
        embed = _embed_rows(transformer, stream, image_embed, len(prefix))
        hidden = transformer(prefix[:, :-1], None, embed)[:, first - 1 :]
        logits = transformer.logits(hidden, stream.text_range).float()
        parts.append(logits.log_softmax(-1).gather(-1, prefix[:, first:, None])[..., 0])
    return torch.cat(parts)


@torch.inference_mode()
def likelihood_table(
    transformer: Decoder,
    stream: Stream,
    captions: Sequence[Sequence[int]],
    image_ids: Tensor,
    *,
    blind: bool = False,
    image_embed: Sequence[float] = (),
    progress: Callable[[int], object] = lambda pairs: None,
) -> Tensor:
    """Log-probability of each picture given each caption.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        captions: text ids of each.
        image_ids: (P, h, w) in [0, K).
        blind: hide all other ids of the picture (BOS in their place), so that each id is predicted from the caption and
            its position alone. Models trained with `id_dropout` have learned to do that. The sum is then no
            log-probability of the picture as a whole.
        image_embed: of all pairs, as `Prompt.image_embed`.
        progress: called with the number of (picture, caption) pairs that each pass has evaluated.

    Returns:
        (P, captions) in nats, at most 0.

    Raises:
        UserError: the image ids have another grid, an id is out of range, a caption is too long, the embedding does not
            fit the stream, or `blind` is given for one without BOS.
    """
    image_ids = _checked(stream, image_ids)
    if blind and stream.config.bos_id < 0:
        raise UserError("expected a stream with BOS, which stands for hidden ids, got one without; leave blind out")
    device = transformer.device
    prefixes = stream.prefix(captions).to(device)
    pictures = stream.to_order(image_ids.to(device))
    evaluate_pairs = _blind_pairs if blind else _pairs
    rows = []
    for part in pictures.split(len(pictures) if blind else CHUNK):
        columns = []
        for prefix in prefixes.split(CHUNK if blind else max(1, CHUNK // len(part))):
            embed = _embed_rows(transformer, stream, image_embed, len(prefix))
            columns.append(evaluate_pairs(transformer, stream, prefix, embed, part).T)
            progress(columns[-1].numel())
        rows.append(torch.cat(columns, 1))
    return torch.cat(rows)


def _pairs(transformer: Decoder, stream: Stream, prefix: Tensor, embed: Tensor | None, pictures: Tensor) -> Tensor:
    """Nats (n, P) of pictures (P, h * w) given captions (n, prefix_length), each of which is run once."""
    prompts = run_prompts(transformer, prefix, embed)
    first = prompts.hidden[:, -1:].repeat_interleave(len(pictures), 0)
    ids = pictures.repeat(len(prefix), 1)
    cache = prompts.cache.branch(torch.arange(len(prefix)).repeat_interleave(len(pictures)), stream.length)
    hidden = transformer(ids + stream.image_offset, cache)[:, :-1]
    logits = transformer.logits(torch.cat([first, hidden], 1), stream.image_range).float()
    return logits.log_softmax(-1).gather(-1, ids[..., None]).sum((1, 2)).view(len(prefix), -1)


def _blind_pairs(
    transformer: Decoder, stream: Stream, prefix: Tensor, embed: Tensor | None, pictures: Tensor
) -> Tensor:
    """As `_pairs`, with all image ids hidden from the model: its logits are then the same for all pictures."""
    hidden_ids = prefix.new_full((len(prefix), stream.image_length - 1), stream.config.bos_id)
    hidden = transformer(torch.cat([prefix, hidden_ids], 1), None, embed)[:, stream.prefix_length - 1 :]
    logits = transformer.logits(hidden, stream.image_range).float()
    return logits.log_softmax(-1).gather(-1, pictures.T.expand(len(prefix), -1, -1)).sum(1)


def _embed_rows(transformer: Decoder, stream: Stream, image_embed: Sequence[float], rows: int) -> Tensor | None:
    """The same embedding for all rows, (rows, D) on the transformer's device; None for none."""
    embed = stream.embeddings([image_embed])
    return None if embed is None else embed.to(transformer.device).expand(rows, -1)


def _checked(stream: Stream, image_ids: Tensor) -> Tensor:
    """Image ids as int64; those that do not fit this stream are refused."""
    if image_ids.shape[1:] != stream.config.grid:
        raise UserError(
            f"expected image ids of grid {stream.config.grid}, got shape {tuple(image_ids.shape)}; "
            f"encode the pictures at the model's size"
        )
    return check_ids(image_ids, stream.config.image_vocab, "image")
