"""Captions -> image ids: prompts are run once, then candidates of one or several of them are decoded together."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.decoding import GuidedContinuations, PromptState, run_prompts
from dalle_mini_impl.sampling.graph_decoder import GraphDecoder, GraphSteps
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.next_ids import RowSettings
from dalle_mini_impl.sampling.requests import (
    CHUNK,
    IdRequest,
    Piece,
    Prompt,
    PromptStart,
    Watch,
    batches,
    choose_chunk,
    divide,
)
from dalle_mini_impl.sampling.seeds import uniform_rows
from dalle_mini_impl.sampling.steps import Candidates, PlainSteps, Steps
from dalle_mini_impl.util.ranking import best_first

T = TypeVar("T")
PRUNE_AFTER = (3 / 16, 7 / 16)
"""Pruning is successive halving (Jamieson & Talwalkar 2016): after each of these fractions of the ids to sample, the
less likely half of the candidates is dropped, so that less than half of all ids (29/64) are sampled. `dalle evaluate
rerank` measures what that saves and costs."""
Progress = Callable[[int], object]
"""Callback: called with the number of image ids that a step has sampled for all candidates together."""


def no_progress(done: int) -> None:
    """Default callback: does nothing."""


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

    @classmethod
    def join(cls, parts: "Sequence[GeneratedIds]") -> "GeneratedIds":
        """All candidates of several parts."""
        columns = ([getattr(part, name) for part in parts] for name in ("indices", "image_ids", "log_likelihood"))
        return cls(*(torch.cat(column) for column in columns))


def generate(
    transformer: Decoder,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    chunk: int | None = None,
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
        prompt: what to draw and what to avoid.
        seeds: one per candidate.
        sampling: temperature, top-k, top-p and guidance; the other settings are not used here.
        chunk: candidates decoded at a time, which bounds memory; None is `CHUNK`, on CUDA as many as half the free
            memory holds, up to 512. Those of a pruned request are then `CHUNK`: which are dropped depends on it.
        progress: called with the number of image ids that each step has sampled; known ids and those that pruning
            leaves out count as well, so that all calls add up to every id of every candidate.
        prune_to: see `IdRequest`.
        known: see `IdRequest`.

    Returns:
        All candidates that were not pruned, in the order of their seeds.

    Raises:
        UserError: a sampling setting or `chunk` is out of range, there is no seed, or the caption, the image embedding
            or the known picture does not fit the stream.
    """
    request = IdRequest(prompt, seeds, sampling, prune_to, known)
    (generated,) = generate_many(transformer, stream, [request], chunk=chunk, progress=progress)
    return generated


@torch.inference_mode()
def generate_many(
    transformer: Decoder,
    stream: Stream,
    requests: Iterable[IdRequest],
    *,
    chunk: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[GeneratedIds]:
    """Sample the image ids of many prompts, several of them together where their candidates fit into a chunk.

    The ids of a request are those that `generate` samples for it alone: rows of a batch have their own prompt, settings
    and random numbers. Requests are read as they are needed, so there may be any number of them.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        requests: what to sample.
        chunk: candidates decoded at a time, of all prompts together; see `generate`.
        progress: see `generate`.

    Yields:
        What `generate` returns, for each request in their order.

    Raises:
        UserError: as `generate`.
    """
    parts: list[GeneratedIds] = []
    begun = None
    size = choose_chunk(transformer, stream) if chunk is None else chunk
    for batch in batches(divide(stream, requests, size, CHUNK if chunk is None else size), size):
        begun = _begin(transformer, stream, batch, begun)
        decoded = _last_value(_decode(transformer, stream, begun, batch, progress))
        for piece, part in zip(batch, decoded, strict=True):
            parts.append(part)
            if piece.is_last:
                yield GeneratedIds.join(parts)
                parts = []


@torch.inference_mode()
def generate_cells(
    transformer: Decoder,
    stream: Stream,
    request: IdRequest,
    *,
    chunk: int | None = None,
    progress: Progress = no_progress,
) -> Generator[Tensor, None, GeneratedIds]:
    """As `generate`, but yields the image ids so far after each cell of the token grid.

    Yields:
        (n, m): the first m ids, in the order of the stream, of the candidates of the chunk that is being decoded.

    Returns:
        All candidates that were not pruned, in the order of their seeds.
    """
    parts: list[GeneratedIds] = []
    begun = None
    size = CHUNK if chunk is None else chunk
    for piece in divide(stream, [request], size, size):
        begun = _begin(transformer, stream, [piece], begun)
        parts += yield from _decode(transformer, stream, begun, [piece], progress)
    return GeneratedIds.join(parts)


class _Begun(NamedTuple):
    """What the candidates of a batch begin with, run through the model once."""

    prompts: PromptState
    """Each distinct start: a caption and the ids that all its candidates share."""
    rows: dict[PromptStart, int]
    """Row of `prompts` by start."""
    log_likelihood: Tensor
    """(P,), of the shared ids given the caption."""


def _begin(transformer: Decoder, stream: Stream, batch: Sequence[Piece], before: _Begun | None) -> _Begun:
    """Run the starts of a batch, unless that was done for the batch before."""
    starts = list(dict.fromkeys(one for piece in batch for one in (*piece.starts, piece.negative_start) if one))
    if before is not None and list(before.rows) == starts:
        return before
    prefix = stream.prefix([one.text_ids for one in starts]).to(transformer.device)
    shared = torch.tensor([one.shared for one in starts], dtype=torch.int64, device=prefix.device)
    image_embed = stream.embeddings([one.image_embed for one in starts])
    prompts = run_prompts(transformer, torch.cat([prefix, shared + stream.image_offset], 1), image_embed)
    log_likelihood = torch.zeros(len(starts), device=prefix.device)
    if shared.shape[1]:
        hidden = prompts.hidden[:, prefix.shape[1] - 1 : -1]
        log_probabilities = transformer.logits(hidden, stream.image_range).float().log_softmax(-1)
        log_likelihood = log_probabilities.gather(-1, shared[:, :, None]).sum((1, 2))
    return _Begun(prompts, {one: row for row, one in enumerate(starts)}, log_likelihood)


def _candidates(stream: Stream, begun: _Begun, batch: Sequence[Piece]) -> Candidates:
    """All candidates of a batch, with the ids that they begin with."""
    columns: list[list[Tensor]] = [[] for _ in Candidates._fields]
    for number, piece in enumerate(batch):
        count, known = len(piece.seeds), piece.known
        uniforms = [uniform_rows(seed, stream.image_length, 2) for seed in piece.seeds]
        for_ids, for_redraw = torch.stack(uniforms).unbind(1)
        redraw = stream.to_order(known.redraw.cpu()) & (for_redraw < known.redraw_probability)
        image_ids = stream.to_order(known.image_ids.cpu().to(torch.int64))
        if image_ids.ndim == 2:
            image_ids = image_ids[piece.first : piece.first + count]
        rows = [begun.rows[one] for one in piece.starts]
        values = (
            for_ids,
            redraw,
            image_ids.expand(count, -1),
            torch.arange(piece.first, piece.first + count),
            torch.full((count,), number),
            begun.log_likelihood[rows],
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value.to(begun.log_likelihood.device))
    return Candidates(*(torch.cat(column) for column in columns))


def _steps(transformer: Decoder, stream: Stream, begun: _Begun, batch: Sequence[Piece]) -> Steps:
    """The steps of a batch, in the way that the decoder is made for."""
    now = _candidates(stream, begun, batch)
    settings = RowSettings.of([piece.request.sampling for piece in batch for _ in piece.seeds], now.image_ids.device)
    pieces = [piece for piece in batch for _ in piece.seeds]
    rows: dict[str, Any] = {
        "captions": [begun.rows[one] for piece in batch for one in piece.starts],
        "negatives": [begun.rows[piece.negative_start] if piece.negative_start else None for piece in pieces],
        "scales": [piece.request.sampling.guidance for piece in pieces],
    }
    if isinstance(transformer, GraphDecoder):
        return GraphSteps(transformer, stream, begun.prompts, **rows, now=now, settings=settings)
    continuations = GuidedContinuations(transformer, begun.prompts, **rows, capacity=stream.length)
    return PlainSteps(continuations, stream, now, settings)


def _decode(
    transformer: Decoder, stream: Stream, begun: _Begun, batch: Sequence[Piece], progress: Progress
) -> Generator[Tensor, None, list[GeneratedIds]]:
    """Continue from the start, one cell at a time for all candidates, and sum up their log-likelihoods."""
    steps = _steps(transformer, stream, begun, batch)
    wanted = set(range(len(batch)))
    try:
        yield from _draw(steps, stream, batch, wanted, progress)
        now = steps.now
        grids = stream.to_grid(now.image_ids)
        of_piece = [_rows_of(now, number if number in wanted else -1) for number in range(len(batch))]
        return [GeneratedIds(now.indices[own], grids[own], now.log_likelihood[own]) for own in of_piece]
    finally:
        steps.close()


def _rows_of(now: Candidates, number: int) -> Tensor:
    """Indices of the candidates of a piece, ascending."""
    return (now.pieces == number).nonzero()[:, 0]


def _draw(
    steps: Steps, stream: Stream, batch: Sequence[Piece], wanted: set[int], progress: Progress
) -> Iterator[Tensor]:
    """Draw all cells; yields the ids so far after each. Pieces that are not wanted any more leave the set `wanted`."""
    cells, shared = stream.image_length, len(batch[0].shared)
    if shared:
        progress(len(steps.now.image_ids) * shared)
    for cell in range(shared, cells):
        steps.draw(cell)
        count = len(steps.now.image_ids)
        progress(count)
        given_up = _given_up(batch, steps.now, wanted, cell + 1)
        wanted -= given_up
        if not wanted:
            progress(count * (cells - cell - 1))
            return
        kept = _keep(batch, steps.now, given_up, cell + 1 - shared, cells - shared)
        if kept is not None:
            progress((count - len(kept)) * (cells - cell - 1))
            steps.keep(kept)
        yield steps.now.image_ids[:, : cell + 1]


def _last_value(generator: Generator[object, None, T]) -> T:
    """What a generator returns at its end."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def _given_up(batch: Sequence[Piece], now: Candidates, wanted: set[int], done: int) -> set[int]:
    """Those pieces among the wanted ones whose requests are not wanted any more after `done` cells."""

    def goes_on(number: int, watch: Watch | None) -> bool:
        return watch is None or watch(done, lambda: now.image_ids[_rows_of(now, number), :done])

    return {number for number in wanted if not goes_on(number, batch[number].request.watch)}


def _keep(batch: Sequence[Piece], now: Candidates, given_up: set[int], sampled: int, total: int) -> Tensor | None:
    """Which candidates of a batch are kept, ascending indices, or None for all.

    Args:
        batch: the pieces.
        now: their candidates.
        given_up: pieces that are dropped.
        sampled: see `candidates_to_keep`.
        total: see `candidates_to_keep`.
    """
    prunes = prunes_now(sampled, total) and any(piece.request.prune_to is not None for piece in batch)
    if not prunes and not given_up:
        return None
    kept, is_less = [], False
    for number, piece in enumerate(batch):
        own = _rows_of(now, number)
        chosen = candidates_to_keep(now.log_likelihood[own], piece.request.prune_to, sampled, total)
        if number in given_up:
            chosen = own[:0]
        is_less |= chosen is not None
        kept.append(own if chosen is None else own[chosen])
    return torch.cat(kept) if is_less else None


def prunes_now(sampled: int, total: int) -> bool:
    """Whether pruning drops candidates once `sampled` of `total` ids are sampled."""
    return sampled in [round(fraction * total) for fraction in PRUNE_AFTER]


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
    if prune_to is None or not prunes_now(sampled, total):
        return None
    count = max(prune_to, -(-len(log_likelihood) // 2))
    if count >= len(log_likelihood):
        return None
    return best_first(log_likelihood)[:count].sort().values
