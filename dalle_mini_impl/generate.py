"""Text ids -> image ids: the prompt is run once, then all candidates decode together with a cache."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config import SamplingConfig
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.kv_cache import Cache
from dalle_mini_impl.native.draw import draw
from dalle_mini_impl.sampling import check, guide, next_ids
from dalle_mini_impl.stream import Stream
from dalle_mini_impl.transformer import Transformer

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


HALVINGS = (1 / 8, 3 / 8)
"""Shares of the picture after which the weaker half of the candidates goes. `dalle evaluate rerank` shows what it costs
and saves."""


@dataclass(frozen=True)
class Pruning:
    """Successive halving: weak candidates are given up on the way, and what they would have taken is saved."""

    score: Callable[[Tensor], Tensor]
    """From nats so far as in `Drawn.likelihood` to (n,), the higher the better; the first of equal ones stays."""
    least: int
    """Candidates of a chunk that stay whatever their scores."""

    def survivors(self, nats: Tensor, done: int, total: int) -> Tensor | None:
        """Which candidates go on when `done` of `total` ids are drawn, or None where all do."""
        kept = max(self.least, -(-len(nats) // 2))
        if kept >= len(nats) or done not in [round(share * total) for share in HALVINGS]:
            return None
        return self.score(nats).argsort(descending=True, stable=True)[:kept].sort().values


@dataclass(frozen=True)
class Drawn:
    """Sampled candidates."""

    numbers: Tensor
    """(n,) int64, of each candidate's seed among those given, rising: all, unless some were pruned."""
    image_ids: Tensor
    """(n, h, w) int64 in [0, K)."""
    likelihood: Tensor
    """(n, 1) or, with guidance, (n, 2): nats of the whole picture given the caption, and given the negative one.

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
    pruning: Pruning | None = None,
) -> Drawn:
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
        pruning: how to tell which candidates of each chunk to give up early; None draws all to the end.

    Raises:
        UserError: a sampling setting or `chunk` is out of range, there is no seed, or the caption does not fit.
    """
    rows = draw_rows(transformer, stream, prompt, seeds, sampling, chunk=chunk, progress=progress, pruning=pruning)
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
    pruning: Pruning | None = None,
) -> Generator[Tensor, None, Drawn]:
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
    guided = sampling.guidance != 1
    device = transformer.embed.weight.device
    captions = [prompt.text_ids, prompt.negative_ids] if guided else [prompt.text_ids]
    prefix = stream.prefix(captions).to(device)
    prompt_cache = transformer.new_cache(len(captions), prefix.shape[1])
    hidden = transformer(prefix, prompt_cache)[:, -1]
    parts = []
    for start in range(0, len(seeds), chunk):
        part = seeds[start : start + chunk]
        uniforms = torch.stack([_uniforms(seed, stream.image_length) for seed in part]).to(device)
        # Row order: every candidate with the caption, then every candidate without.
        cache = prompt_cache.branch(len(part), stream.length)
        first = hidden.repeat_interleave(len(part), 0)
        drawn = yield from _decode(transformer, stream, cache, first, uniforms, sampling, progress, pruning)
        parts.append((drawn.numbers + start, drawn.image_ids, drawn.likelihood))
    return Drawn(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _decode(
    transformer: Transformer,
    stream: Stream,
    cache: Cache,
    hidden: Tensor,
    uniforms: Tensor,
    sampling: SamplingConfig,
    progress: Progress,
    pruning: Pruning | None,
) -> Generator[Tensor, None, Drawn]:
    """Draw all ids, one position at a time for all rows of `hidden` (N or 2N, C), and sum up their nats."""
    groups, width, total = len(hidden) // len(uniforms), stream.config.grid[1], stream.image_length
    numbers = torch.arange(len(uniforms), device=hidden.device)
    drawn = torch.empty(uniforms.shape, dtype=torch.int64, device=hidden.device)
    nats = torch.zeros(len(hidden), device=hidden.device)
    for place in range(total):
        logits = transformer.logits(hidden, stream.image_range).float()
        wanted = logits
        if groups == 2:
            conditional, null = logits.chunk(2)
            wanted = guide(conditional, null, sampling.guidance)
        drawn[:, place] = ids = draw_ids(wanted, uniforms[:, place], sampling)
        rows = ids.repeat(groups)
        nats += logits.gather(1, rows[:, None])[:, 0] - logits.logsumexp(1)
        progress(len(ids))
        if pruning and (kept := pruning.survivors(nats.view(groups, -1).T, place + 1, total)) is not None:
            progress((len(ids) - len(kept)) * (total - place - 1))
            both = torch.cat([kept + group * len(ids) for group in range(groups)])
            cache.keep(both)
            numbers, drawn, uniforms, nats, rows = numbers[kept], drawn[kept], uniforms[kept], nats[both], rows[both]
        if (place + 1) % width == 0:
            yield drawn[:, : place + 1].unflatten(1, (-1, width))
        if place + 1 < total:
            hidden = transformer((rows + stream.image_offset)[:, None], cache)[:, -1]
    return Drawn(numbers, drawn.unflatten(1, stream.config.grid), nats.view(groups, -1).T)


def draw_ids(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """As `next_ids`, in compiled code where there is some for these settings."""
    drawn = None
    if logits.device.type == "cpu" and sampling.temperature > 0 and sampling.top_p == 1:
        drawn = draw(logits, uniform, sampling.temperature, sampling.top_k or logits.shape[-1])
    return next_ids(logits, uniform, sampling) if drawn is None else drawn


def _uniforms(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


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
    hidden = transformer(ids[:, :-1])[:, stream.config.text_length :]
    return transformer.logits(hidden, stream.image_range).float()


def log_likelihood(transformer: Transformer, stream: Stream, text_ids: Sequence[int], image_ids: Tensor) -> Tensor:
    """Log-probability of each image id given the caption and the ids before it; see `image_logits`.

    Returns:
        (B, h * w) in nats, at most 0.
    """
    scores = F.log_softmax(image_logits(transformer, stream, text_ids, image_ids), -1)
    return scores.gather(-1, image_ids.to(scores.device).flatten(1)[..., None])[..., 0]
