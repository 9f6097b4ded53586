"""Beginning of a caption -> captions: the text positions of the stream, sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.decoding import Continuations, run_prompts
from dalle_mini_impl.sampling.generate import CHUNK
from dalle_mini_impl.sampling.next_ids import RowSettings, validate_sampling
from dalle_mini_impl.sampling.seeds import uniform_rows
from dalle_mini_impl.sampling.steps import sample_ids
from dalle_mini_impl.util.errors import UserError


@torch.inference_mode()
def generate_texts(
    transformer: Decoder,
    stream: Stream,
    beginning: Sequence[int],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    image_embed: Sequence[float] = (),
    chunk: int = CHUNK,
) -> list[list[int]]:
    """Sample captions, all together with a cache. Each depends on its own seed alone.

    At each position the model chooses among all text ids and this position's padding id, which ends the caption. A
    caption has at least one id: the empty caption, which stands for "no caption", is never sampled.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        beginning: text ids that all captions begin with; may be empty.
        seeds: one per caption.
        sampling: temperature, top-k and top-p; the other settings are not used here.
        image_embed: of a picture that the captions are for, as `Prompt.image_embed`.
        chunk: captions decoded at a time, which bounds memory.

    Returns:
        Text ids of each caption, the beginning included, without padding. Byte ids may form invalid UTF-8.

    Raises:
        UserError: a setting or `chunk` is out of range, there is no seed, the beginning fills all text positions or has
            an id that is no text id, it is empty and the stream has nothing to begin with, or the embedding does not
            fit the stream.
    """
    length = stream.config.text_length
    if not seeds:
        raise UserError("expected at least one seed, got none; give one per caption")
    if chunk < 1:
        raise UserError(f"expected a chunk of at least 1 caption, got {chunk}; {CHUNK} is the default")
    if len(beginning) >= length:
        raise UserError(f"expected a beginning of at most {length - 1} text ids, got {len(beginning)}; shorten it")
    validate_sampling(sampling, stream.config.text_vocab)
    prefix = stream.prefix([beginning])[:, : stream.prefix_length - length + len(beginning)]
    if not prefix.numel():
        raise UserError("expected a beginning, as this model's stream has no BOS, got none; give at least one text id")
    prompts = run_prompts(transformer, prefix.to(transformer.device), stream.embeddings([image_embed]))
    captions: list[list[int]] = []
    for first in range(0, len(seeds), chunk):
        part = seeds[first : first + chunk]
        uniforms = torch.cat([uniform_rows(seed, length, 1) for seed in part]).to(prompts.hidden.device)
        rows = torch.zeros(len(part), dtype=torch.int64)
        continuations = Continuations(transformer, prompts, rows, stream.prefix_length)
        settings = RowSettings.of([sampling] * len(part), uniforms.device)
        captions += _decode_chunk(continuations, stream, beginning, uniforms, settings)
    return captions


def _decode_chunk(
    continuations: Continuations, stream: Stream, beginning: Sequence[int], uniforms: Tensor, settings: RowSettings
) -> list[list[int]]:
    """Continue the beginning until all captions have ended; uniforms (n, text_length) are the random numbers."""
    length = stream.config.text_length
    vocab = stream.config.text_vocab
    texts = torch.tensor(beginning, dtype=torch.int64, device=uniforms.device).repeat(len(uniforms), 1)
    ended = torch.zeros(len(uniforms), dtype=torch.bool, device=uniforms.device)
    for position in range(len(beginning), length):
        logits = continuations.next_logits(stream.text_range)
        # The padding id of text position p is vocab + p; at position 0 the caption may not end.
        padding = logits[:, vocab + position : vocab + position + (position > 0)]
        ids = sample_ids(torch.cat([logits[:, :vocab], padding], 1), uniforms[:, position], settings)
        ended = ended | (ids == vocab)
        texts = torch.cat([texts, ids.masked_fill(ended, vocab)[:, None]], 1)
        if ended.all() or position + 1 == length:
            break
        continuations.append(ids.masked_fill(ended, vocab + position))
    return [[text_id for text_id in row if text_id < vocab] for row in texts.tolist()]
