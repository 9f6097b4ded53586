"""How much ranking gains, and what it costs: R-precision of the best of N candidates by each way of choosing it."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.evaluate.generation import Drawing, EvaluationContext, draw, pick
from dalle_mini_impl.evaluate.intervals import TOP, Share, share
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import survivors
from dalle_mini_impl.util.plots import new_figure, save_figure

TIMED_PROMPTS = 3


class Way(NamedTuple):
    """How the best candidate is chosen."""

    score: str
    """Key of `Scored.whole`, or `chance`."""
    rank: str
    """What `generate` would be asked for: its cost is measured."""
    prune: bool = False


WAYS = {
    "chance": Way("chance", "none"),
    "ratio": Way("ratio", "likelihood"),
    "ratio + clip": Way("ratio + clip", "both"),
    "likelihood": Way("likelihood", "likelihood"),
    "clip": Way("clip", "clip"),
    "both": Way("both", "both"),
    "likelihood, pruned": Way("likelihood", "likelihood", True),
    "both, pruned": Way("both", "both", True),
}
"""`likelihood`, `clip` and `both`, their sum, are what `generate` offers. `ratio` is the likelihood given the caption
over that without it, `chance` the mean candidate."""
SHOWN = ("likelihood", "clip", "both", "likelihood, pruned", "both, pruned")


@dataclass(frozen=True)
class Point:
    """Quality and cost of the best of N by one way of choosing."""

    way: str
    candidates: int
    seconds: float
    """For a prompt, from text to the best picture; median of several."""
    shares: dict[str, tuple[Share, ...]]
    """Judge -> top-1 and top-5."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What ways of choosing go by, for candidates in the order of their seeds."""

    whole: dict[str, Tensor]
    """Score -> (..., N)."""
    so_far: Tensor
    """(..., N, h * w): nats after each id, by which candidates are pruned."""


def scores(dalle: DalleMini, result: Result) -> Scored:
    """Every score of the candidates of one prompt, in their order."""
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    given, null = (dalle.log_likelihood(text, image_ids).cumsum(1) for text in (result.prompt, ""))
    cosines = dalle.scorer.cosines([candidate.image for candidate in result], result.prompt)
    likelihood, clip = given[:, -1], dalle.scorer.scale * cosines
    ratio = likelihood - null[:, -1]
    whole = {
        "ratio": ratio,
        "ratio + clip": ratio + clip,
        "likelihood": likelihood,
        "clip": cosines,
        "both": likelihood + clip,
    }
    return Scored(whole, given)


def best_of(hits: Tensor, scored: Tensor | None, count: int) -> Tensor:
    """Chance (prompts,) that the best of `count` is a hit, over as many whole groups as the candidates make.

    Args:
        hits: (prompts, N) bool.
        scored: (prompts, N), the higher the better, the first of equal ones winning; None chooses at random.
        count: size of a group, at most N.
    """
    hits = _groups(hits, count).double()
    if scored is None:
        return hits.mean((1, 2))
    best = _groups(scored, count).argmax(2, keepdim=True)
    return hits.gather(2, best).mean((1, 2))


def pruned(scored: Tensor, so_far: Tensor, count: int) -> Tensor:
    """Scores (prompts, N) where whoever `generate` would give up in its group of `count` has minus infinity."""
    result, total = torch.full_like(scored, -torch.inf), so_far.shape[2]
    for row, nats in enumerate(so_far):
        for start in range(0, scored.shape[1] // count * count, count):
            alive = torch.arange(start, start + count)
            for done in range(1, total):
                kept = survivors(nats[alive, done - 1], 1, done, total)
                alive = alive if kept is None else alive[kept]
            result[row, alive] = scored[row, alive]
    return result


def curve(drawing: Drawing, scored: Scored, seconds: dict[tuple[Way, int], float]) -> list[Point]:
    """Points for every way and N = 1, 2, 4 … up to all candidates.

    Args:
        drawing: pictures in the order of their seeds.
        scored: with the prompts in front.
        seconds: what a way takes with so many candidates.
    """
    points = []
    for name, way in WAYS.items():
        for count in counts(len(drawing.results[0])):
            values = scored.whole.get(way.score)
            if values is not None and way.prune:
                values = pruned(values, scored.so_far, count)
            shares = {
                judge: tuple(share(best_of(ranks < k, values, count).tolist()) for k in TOP)
                for judge, ranks in drawing.ranks.items()
            }
            points.append(Point(name, count, seconds[way._replace(score=""), count], shares))
    return points


def counts(total: int) -> list[int]:
    """1, 2, 4 … up to `total`."""
    return [2**n for n in range(total.bit_length())]


def measure_seconds(dalle: DalleMini, prompts: Sequence[str], total: int) -> dict[tuple[Way, int], float]:
    """Median seconds from text to the best picture, for each way to ask `generate` (its score's name left empty)."""
    seconds: dict[tuple[Way, int], float] = {}
    for way in dict.fromkeys(way._replace(score="") for way in WAYS.values()):
        for count in counts(total):
            # To keep a random candidate, one is enough to draw.
            options: dict[str, Any] = {"candidates": 1 if way.rank == "none" else count, "keep": 1}
            dalle.generate(prompts[0], rank=way.rank, prune=way.prune, **options)  # warms up
            took = []
            for prompt in prompts:
                start = time.perf_counter()
                dalle.generate(prompt, rank=way.rank, prune=way.prune, **options)
                took.append(time.perf_counter() - start)
            seconds[way, count] = statistics.median(took)
    return seconds


def rerank(context: EvaluationContext) -> list[Point]:
    """Draw for held-out pairs that no other figure uses, and rank in every way."""
    settings = context.settings
    numbers = pick(context.art, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    drawing = draw(context, numbers, "drawing", rank="none")
    every = [scores(context.dalle, result) for result in drawing.results]
    whole = {name: torch.stack([one.whole[name] for one in every]) for name in every[0].whole}
    scored = Scored(whole, torch.stack([one.so_far for one in every]))
    prompts = [result.prompt for result in drawing.results[:TIMED_PROMPTS]]
    return curve(drawing, scored, measure_seconds(context.dalle, prompts, settings.candidates))


def table(points: Sequence[Point], judge: str) -> str:
    """Top-5 by one judge: a line for each way, a column for each N."""
    return _table(points, "top-5 of the best of", lambda point: point.shares[judge][TOP.index(5)].value)


def seconds_table(points: Sequence[Point]) -> str:
    """Seconds for a prompt: a line for each way, a column for each N."""
    return _table(points, "seconds for a prompt", lambda point: point.seconds)


def plot(points: Sequence[Point], path: str | Path) -> Path:
    """Draw quality by the first judge over seconds, a line for each way that `generate` offers.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = new_figure(7, 4.2)
    panel, judge = figure.subplots(), next(iter(points[0].shares))
    for name in SHOWN:
        line = [point for point in points if point.way == name]
        heights = [point.shares[judge][TOP.index(5)].value for point in line]
        panel.plot([point.seconds for point in line], heights, "--o" if WAYS[name].prune else "-o", ms=4, label=name)
        panel.annotate(str(line[-1].candidates), (line[-1].seconds, heights[-1]), (4, 4), textcoords="offset points")
    chance = next(point for point in points if point.way == "chance").shares[judge][TOP.index(5)].value
    panel.axhline(chance, color="gray", lw=0.8, label="a random candidate")
    panel.set_xscale("log")
    panel.set_xlabel("seconds for a prompt")
    panel.set_ylabel(f"best of 1, 2, 4 … : top-5 ({judge})")
    panel.legend()
    return save_figure(figure, path)


def _table(points: Sequence[Point], title: str, value: Any) -> str:
    columns = sorted({point.candidates for point in points})
    found = {(point.way, point.candidates): value(point) for point in points}
    lines = [f"{title:24}" + "".join(f"{count:>7}" for count in columns)]
    lines += [f"{'  by ' + way:24}" + "".join(f"{found[way, count]:7.2f}" for count in columns) for way in WAYS]
    return "\n".join(lines)


def _groups(values: Tensor, count: int) -> Tensor:
    """(prompts, N) -> (prompts, whole groups, count)."""
    groups = values.shape[1] // count
    return values[:, : groups * count].unflatten(1, (groups, count))
