"""Text ids -> image ids: the prompt is run once, then all candidates decode together with a cache."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.kv_cache import Cache
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.native.draw import draw
from dalle_mini_impl.sampling.next_ids import check, guide, next_ids
from dalle_mini_impl.util.errors import UserError

CHUNK = 64
Progress = Callable[[int], object]
"""Told how many image ids each step has drawn."""


def ignore(ids: int) -> None:
    """Nobody wants to know of the progress."""


@dataclass(frozen=True)
class Prompt:
    """What to draw and what to steer away from, as text ids."""

    text_ids: Sequence[int]
    """The caption."""
    negative_ids: Sequence[int] = ()
    """What guidance steers away from; empty means "no caption"."""


HALVINGS = (3 / 16, 7 / 16)
"""Shares of what is drawn after which pruning gives up the less likely half of the candidates. `dalle evaluate rerank`
shows what that saves and costs."""


@dataclass(frozen=True)
class GeneratedIds:
    """Sampled candidates."""

    numbers: Tensor
    """(n,) int64, of each candidate's seed among those given, rising: all, unless some were pruned."""
    image_ids: Tensor
    """(n, h, w) int64 in [0, K)."""
    likelihood: Tensor
    """(n,) nats of the whole picture given the caption.

    The model's own, at temperature 1 and without top-k or top-p, whatever the settings were.
    """


def generate(
    transformer: Transformer,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    chunk: int = CHUNK,
    progress: Progress = ignore,
    prune_to: int | None = None,
    known: KnownIds | None = None,
) -> GeneratedIds:
    """Sample the image ids of several candidates for one prompt.

    Each candidate has its own random numbers, drawn from its own seed on the CPU, so its picture does not
    depend on how many others there are or how they are chunked.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        prompt: caption and negative caption.
        seeds: one per candidate.
        sampling: temperature, top-k, top-p and guidance.
        chunk: candidates decoded at a time, which bounds memory.
        progress: told how many image ids each step has drawn, or will never be.
        prune_to: give weak candidates up early by successive halving, but leave at least so many of each chunk; None
            draws all to the end.
        known: a picture some of whose ids stay; what is drawn sees those before it in raster order, not those after.

    Raises:
        UserError: a sampling setting or `chunk` is out of range, there is no seed, or the caption or the kept
            picture does not fit.
    """
    rows = draw_rows(
        transformer, stream, prompt, seeds, sampling, chunk=chunk, progress=progress, prune_to=prune_to, known=known
    )
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def draw_rows(
    transformer: Transformer,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    chunk: int = CHUNK,
    progress: Progress = ignore,
    prune_to: int | None = None,
    known: KnownIds | None = None,
) -> Generator[Tensor, None, GeneratedIds]:
    """As `generate`, but gives the image ids so far after each row of the token grid.

    Yields:
        (n, r, w): the first r rows of the candidates of the chunk that is being drawn.

    Returns:
        All of them.
    """
    if not seeds:
        raise UserError("no seeds were given; give one per candidate")
    check(sampling, stream.config.image_vocab)
    if chunk < 1:
        raise UserError(f"chunk {chunk} was given, expected at least 1 candidate at a time")
    grid = stream.config.grid
    known = known or KnownIds(torch.zeros(grid, dtype=torch.int64), torch.ones(grid, dtype=torch.bool))
    known.check(stream, len(seeds))
    captions = [prompt.text_ids] if sampling.guidance == 1 else [prompt.text_ids, prompt.negative_ids]
    start = _begin(transformer, stream, captions, known.leading)
    device = start.hidden.device
    kept_ids = known.image_ids.to(device).flatten(-2).expand(len(seeds), -1)
    parts = []
    for first in range(0, len(seeds), chunk):
        rolls = torch.stack([_rolls(seed, stream.image_length) for seed in seeds[first : first + chunk]])
        redraw = known.redraw.cpu().flatten() & (rolls[:, 1] < known.share)
        rows = _Rows(rolls[:, 0].to(device), redraw.to(device), kept_ids[first : first + chunk].clone())
        drawn = yield from _decode(transformer, stream, start, rows, sampling, progress, prune_to)
        parts.append((drawn.numbers + first, drawn.image_ids, drawn.likelihood))
    return GeneratedIds(*(torch.cat(values) for values in zip(*parts, strict=True)))


class _Start(NamedTuple):
    """What all candidates begin with, run once: a row with the caption and, with guidance, one without."""

    cache: Cache
    hidden: Tensor
    """(1 or 2, C), of the last position."""
    nats: Tensor
    """(1,), of the leading image ids given the caption."""
    done: int
    """How many these are."""


class _Rows(NamedTuple):
    """The candidates of one chunk."""

    uniforms: Tensor
    """(n, h * w), one for each draw."""
    redraw: Tensor
    """(n, h * w) bool: which ids are drawn."""
    image_ids: Tensor
    """(n, h * w), overwritten where they are drawn."""


def _begin(transformer: Transformer, stream: Stream, captions: Sequence[Sequence[int]], leading: Tensor) -> _Start:
    """Run the captions and the image ids (n,) that come first."""
    prefix = stream.prefix(captions).to(transformer.device)
    ids = leading.to(prefix.device).expand(len(captions), -1)
    cache = transformer.new_cache(len(captions), prefix.shape[1] + len(leading))
    hidden = transformer(torch.cat([prefix, ids + stream.image_offset], 1), cache)[:, prefix.shape[1] - 1 :]
    scores = transformer.logits(hidden[:1, :-1], stream.image_range).float().log_softmax(-1)
    return _Start(cache, hidden[:, -1], scores.gather(-1, ids[:1, :, None]).sum((1, 2)), len(leading))


def _decode(
    transformer: Transformer,
    stream: Stream,
    start: _Start,
    rows: _Rows,
    sampling: SamplingConfig,
    progress: Progress,
    prune_to: int | None,
) -> Generator[Tensor, None, GeneratedIds]:
    """Go on from the start, one position at a time for all candidates, and sum up their nats."""
    groups, width, total = len(start.hidden), stream.config.grid[1], stream.image_length
    uniforms, redraw, drawn = rows
    # Row order: every candidate with the caption, then every candidate without.
    hidden, cache = start.hidden.repeat_interleave(len(drawn), 0), start.cache.branch(len(drawn), stream.length)
    nats, numbers = start.nats.repeat(len(drawn)), torch.arange(len(drawn), device=hidden.device)
    if start.done:
        progress(len(drawn) * start.done)
    for place in range(start.done, total):
        logits, *null = transformer.logits(hidden, stream.image_range).float().chunk(groups)
        wanted = guide(logits, null[0], sampling.guidance) if null else logits
        ids = torch.where(redraw[:, place], draw_ids(wanted, uniforms[:, place], sampling), drawn[:, place])
        drawn[:, place] = ids
        nats += logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)
        progress(len(ids))
        if (alive := survivors(nats, prune_to, place + 1 - start.done, total - start.done)) is not None:
            progress((len(ids) - len(alive)) * (total - place - 1))
            cache.keep(torch.cat([alive + group * len(ids) for group in range(groups)]))
            numbers, uniforms, redraw, drawn, nats, ids = (
                part[alive] for part in (numbers, uniforms, redraw, drawn, nats, ids)
            )
        if (place + 1) % width == 0:
            yield drawn[:, : place + 1].unflatten(1, (-1, width))
        if place + 1 < total:
            hidden = transformer((ids.repeat(groups) + stream.image_offset)[:, None], cache)[:, -1]
    return GeneratedIds(numbers, drawn.unflatten(1, stream.config.grid), nats)


def survivors(nats: Tensor, prune_to: int | None, done: int, total: int) -> Tensor | None:
    """Which candidates go on when `done` of `total` ids are drawn, or None where all do.

    Args:
        nats: (n,) of the ids so far given the caption; the first of equal ones stays.
        prune_to: see `generate`.
        done: ids drawn, from 1; those of a kept picture that come first do not count, here and below.
        total: ids to draw.
    """
    if prune_to is None or done not in [round(share * total) for share in HALVINGS]:
        return None
    known = max(prune_to, -(-len(nats) // 2))
    return nats.argsort(descending=True, stable=True)[:known].sort().values if known < len(nats) else None


def draw_ids(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """As `next_ids`, in compiled code where there is some for these settings."""
    drawn = None
    if logits.device.type == "cpu" and sampling.temperature > 0 and sampling.top_p == 1:
        drawn = draw(logits, uniform, sampling.temperature, sampling.top_k or logits.shape[-1])
    return next_ids(logits, uniform, sampling) if drawn is None else drawn


def _rolls(seed: int, count: int) -> Tensor:
    """Numbers in [0, 1) of one candidate, (2, count): for what is drawn, and for whether it is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.rand(count, generator=generator) for _ in range(2)])
