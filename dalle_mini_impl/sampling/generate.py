"""Caption -> image ids: the prompt is run once, then all candidates are decoded together with a cache."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.decoding import Continuations, PromptState, run_prompts
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.native.next_id import sample_top_k
from dalle_mini_impl.sampling.next_ids import guide, next_ids, validate_sampling
from dalle_mini_impl.sampling.seeds import uniform_rows
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.ranking import best_first

CHUNK = 64
"""Candidates decoded at a time by default. Memory grows with it; the ids do not depend on it."""
PRUNE_AFTER = (3 / 16, 7 / 16)
"""Pruning is successive halving (Jamieson & Talwalkar 2016): after each of these fractions of the ids to sample, the
less likely half of the candidates is dropped, so that less than half of all ids (29/64) are sampled. `dalle evaluate
rerank` measures what that saves and costs."""
Progress = Callable[[int], object]
"""Callback: called with the number of image ids that a step has sampled for all candidates together."""


def no_progress(ids: int) -> None:
    """Default callback: does nothing."""


@dataclass(frozen=True)
class Prompt:
    """Caption and negative caption, as text ids."""

    text_ids: Sequence[int]
    """The caption."""
    negative_ids: Sequence[int] = ()
    """What guidance moves away from; empty means "no caption"."""


@dataclass(frozen=True)
class GeneratedIds:
    """n sampled candidates."""

    indices: Tensor
    """(n,) int64, ascending: the index of each candidate's seed among the seeds given; all of them unless pruned."""
    image_ids: Tensor
    """(n, h, w) int64 in [0, K)."""
    log_likelihood: Tensor
    """(n,) log-probability in nats of each whole picture given the caption.

    It is the model's own, at temperature 1 and without guidance, top-k or top-p, whatever the settings were.
    """


def generate(
    transformer: Decoder,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    chunk: int = CHUNK,
    progress: Progress = no_progress,
    prune_to: int | None = None,
    known: KnownIds | None = None,
) -> GeneratedIds:
    """Sample the image ids of several candidates for one prompt.

    Each candidate has its own random numbers, drawn from its own seed on the CPU, so its picture does not depend on how
    many others there are or how they are chunked.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        prompt: caption and negative caption.
        seeds: one per candidate.
        sampling: temperature, top-k, top-p and guidance; the other settings are not used here.
        chunk: candidates decoded at a time, which bounds memory.
        progress: called with the number of image ids that each step has sampled; known ids and those that pruning
            leaves out count as well, so that all calls add up to every id of every candidate.
        prune_to: drop the less likely candidates early by successive halving, but keep at least this many of each
            chunk; None finishes all.
        known: a picture some of whose ids stay. Ids are sampled in the order of the stream: each is conditioned on the
            known ids before it, not on those after it.

    Returns:
        All candidates that were not pruned, in the order of their seeds.

    Raises:
        UserError: a sampling setting or `chunk` is out of range, there is no seed, or the caption or the known picture
            does not fit the stream.
    """
    cells = generate_cells(
        transformer, stream, prompt, seeds, sampling, chunk=chunk, progress=progress, prune_to=prune_to, known=known
    )
    while True:
        try:
            next(cells)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def generate_cells(
    transformer: Decoder,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    chunk: int = CHUNK,
    progress: Progress = no_progress,
    prune_to: int | None = None,
    known: KnownIds | None = None,
) -> Generator[Tensor, None, GeneratedIds]:
    """As `generate`, but yields the image ids so far after each cell of the token grid.

    Yields:
        (n, m): the first m ids, in the order of the stream, of the candidates of the chunk that is being decoded.

    Returns:
        All candidates that were not pruned, in the order of their seeds.
    """
    if not seeds:
        raise UserError("expected at least one seed, got none; give one per candidate")
    validate_sampling(sampling, stream.config.image_vocab)
    if chunk < 1:
        raise UserError(f"expected a chunk of at least 1 candidate, got {chunk}; {CHUNK} is the default")
    known = known or KnownIds.none(stream.config.grid)
    known.validate(stream, len(seeds))
    captions = [prompt.text_ids] if sampling.guidance == 1 else [prompt.text_ids, prompt.negative_ids]
    start = _run_start(transformer, stream, captions, known.shared_prefix(stream))
    device = start.prompts.hidden.device
    known_ids = stream.to_order(known.image_ids.to(device, torch.int64)).expand(len(seeds), -1)
    parts = []
    for first in range(0, len(seeds), chunk):
        rows = [uniform_rows(seed, stream.image_length, 2) for seed in seeds[first : first + chunk]]
        for_ids, for_redraw = torch.stack(rows).unbind(1)
        redraw = stream.to_order(known.redraw.cpu()) & (for_redraw < known.redraw_probability)
        candidates = _Chunk(for_ids.to(device), redraw.to(device), known_ids[first : first + chunk].clone())
        part = yield from _decode_chunk(transformer, stream, start, candidates, sampling, progress, prune_to)
        parts.append((part.indices + first, part.image_ids, part.log_likelihood))
    return GeneratedIds(*(torch.cat(values) for values in zip(*parts, strict=True)))


class _Start(NamedTuple):
    """What all candidates begin with, run through the model once."""

    prompts: PromptState
    """The caption and, with guidance, the negative caption, each followed by the ids that all candidates share."""
    length: int
    """How many image ids they share."""
    log_likelihood: Tensor
    """(1,), of these ids given the caption."""


class _Chunk(NamedTuple):
    """The candidates that are decoded together; h * w cells in the order of the stream."""

    uniforms: Tensor
    """(n, h * w), the random number with which each id is sampled."""
    redraw: Tensor
    """(n, h * w) bool: the cells whose ids are sampled."""
    image_ids: Tensor
    """(n, h * w), the known ids; overwritten where ids are sampled."""


def _run_start(transformer: Decoder, stream: Stream, captions: Sequence[Sequence[int]], image_ids: Tensor) -> _Start:
    """Run the captions, each followed by the first image ids (m,), which all candidates share."""
    prefix = stream.prefix(captions).to(transformer.device)
    ids = image_ids.to(prefix.device).expand(len(captions), -1)
    prompts = run_prompts(transformer, torch.cat([prefix, ids + stream.image_offset], 1))
    hidden = prompts.hidden[:1, prefix.shape[1] - 1 : -1]
    log_probabilities = transformer.logits(hidden, stream.image_range).float().log_softmax(-1)
    return _Start(prompts, len(image_ids), log_probabilities.gather(-1, ids[:1, :, None]).sum((1, 2)))


def _decode_chunk(
    transformer: Decoder,
    stream: Stream,
    start: _Start,
    candidates: _Chunk,
    sampling: SamplingConfig,
    progress: Progress,
    prune_to: int | None,
) -> Generator[Tensor, None, GeneratedIds]:
    """Continue from the start, one cell at a time for all candidates, and sum up their log-likelihoods."""
    uniforms, redraw, image_ids = candidates
    cells = stream.image_length
    continuations = Continuations(transformer, start.prompts, len(image_ids), stream.length)
    log_likelihood = start.log_likelihood.repeat(len(image_ids))
    indices = torch.arange(len(image_ids), device=image_ids.device)
    if start.length:
        progress(len(image_ids) * start.length)
    for cell in range(start.length, cells):
        logits, *unconditional = continuations.next_logits(stream.image_range)
        guided = guide(logits, unconditional[0], sampling.guidance) if unconditional else logits
        ids = torch.where(redraw[:, cell], sample_ids(guided, uniforms[:, cell], sampling), image_ids[:, cell])
        image_ids[:, cell] = ids
        log_likelihood += logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)
        progress(len(ids))
        kept = candidates_to_keep(log_likelihood, prune_to, cell + 1 - start.length, cells - start.length)
        if kept is not None:
            progress((len(ids) - len(kept)) * (cells - cell - 1))
            continuations.keep(kept)
            indices, uniforms, redraw, image_ids, log_likelihood, ids = (
                values[kept] for values in (indices, uniforms, redraw, image_ids, log_likelihood, ids)
            )
        yield image_ids[:, : cell + 1]
        if cell + 1 < cells:
            continuations.append(ids + stream.image_offset)
    return GeneratedIds(indices, stream.to_grid(image_ids), log_likelihood)


def candidates_to_keep(log_likelihood: Tensor, prune_to: int | None, sampled: int, total: int) -> Tensor | None:
    """Which candidates pruning keeps once `sampled` of `total` ids are sampled.

    Args:
        log_likelihood: (n,) nats of the ids so far given the caption; of equal candidates the first is kept.
        prune_to: see `generate`.
        sampled: ids sampled so far, at least 1; known ids that all candidates begin with do not count, here and below.
        total: ids to sample.

    Returns:
        (m,) ascending indices, or None where all candidates are kept.
    """
    if prune_to is None or sampled not in [round(fraction * total) for fraction in PRUNE_AFTER]:
        return None
    count = max(prune_to, -(-len(log_likelihood) // 2))
    if count >= len(log_likelihood):
        return None
    return best_first(log_likelihood)[:count].sort().values


def sample_ids(logits: Tensor, uniforms: Tensor, sampling: SamplingConfig) -> Tensor:
    """As `next_ids`, by compiled code where there is any for this device and these settings."""
    ids = None
    if logits.device.type == "cpu" and sampling.temperature > 0 and sampling.top_p == 1:
        ids = sample_top_k(logits, uniforms, sampling.temperature, sampling.top_k or logits.shape[-1])
    return next_ids(logits, uniforms, sampling) if ids is None else ids
