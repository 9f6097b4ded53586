"""Text ids -> captions: the text part of the stream, sampled."""

from collections.abc import Sequence

import torch

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import CHUNK, draw_ids
from dalle_mini_impl.sampling.next_ids import check
from dalle_mini_impl.util.errors import UserError


@torch.inference_mode()
def generate_texts(
    transformer: Transformer,
    stream: Stream,
    beginning: Sequence[int],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    chunk: int = CHUNK,
) -> list[list[int]]:
    """Sample captions, all at once with a cache. Each depends on its own seed alone.

    At each place the model chooses among all text ids and this place's padding, which ends the caption. A caption has
    at least one id: "no caption" is not drawn.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        beginning: text ids that all captions begin with; may be empty.
        seeds: one per caption.
        sampling: temperature, top-k and top-p; the rest has no say here.
        chunk: captions drawn at a time, which bounds memory.

    Returns:
        Text ids of each caption, the beginning included, without padding. They may be bytes that make no UTF-8.

    Raises:
        UserError: a setting or `chunk` is out of range, there is no seed, the beginning leaves no room or has an id
            that is no text id, or it is empty and the stream has no BOS to begin with.
    """
    length, vocab = stream.config.text_length, stream.config.text_vocab
    if not seeds:
        raise UserError("no seeds were given; give one per caption")
    if chunk < 1:
        raise UserError(f"chunk {chunk} was given, expected at least 1 caption at a time")
    if len(beginning) >= length:
        raise UserError(
            f"a beginning of {len(beginning)} text ids was given, at most {length - 1} leave room to go on; shorten it"
        )
    check(sampling, vocab)
    prefix = stream.prefix([beginning])[:, : stream.prefix_length - length + len(beginning)]
    if not prefix.numel():
        raise UserError("no beginning was given, and the stream has no BOS to go on from; give at least one text id")
    prefix = prefix.to(transformer.device)
    start = transformer.new_cache(1, prefix.shape[1])
    first = transformer(prefix, start)[:, -1]
    drawn: list[list[int]] = []
    for part in torch.tensor(seeds).split(chunk):
        rolls = [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in part.tolist()]
        uniforms = torch.stack(rolls).to(first.device)
        hidden, cache = first.expand(len(part), -1), start.branch(len(part), stream.prefix_length)
        texts = torch.tensor(beginning, dtype=torch.int64, device=first.device).repeat(len(part), 1)
        ended = torch.zeros(len(part), dtype=torch.bool, device=first.device)
        for place in range(len(beginning), length):
            logits = transformer.logits(hidden, stream.text_range).float()
            ends = logits[:, vocab + place : vocab + place + (place > 0)]
            ids = draw_ids(torch.cat([logits[:, :vocab], ends], 1), uniforms[:, place], sampling)
            ended = ended | (ids == vocab)
            texts = torch.cat([texts, ids.masked_fill(ended, vocab)[:, None]], 1)
            if ended.all() or place + 1 == length:
                break
            hidden = transformer(ids.masked_fill(ended, vocab + place)[:, None], cache)[:, -1]
        drawn += [[text_id for text_id in row if text_id < vocab] for row in texts.tolist()]
    return drawn
