"""What ranking candidates gains and costs: R-precision of the best of N by each ranking method, and seconds."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.evaluate.generation import (
    EvaluationContext,
    GeneratedPictures,
    generate_pictures,
    sample_indices,
)
from dalle_mini_impl.evaluate.intervals import TOP_K, Share, ShareRow, mean_share
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.prior_embeds import draw_embeds
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import candidates_to_keep
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.util.plots import new_figure, save_figure
from dalle_mini_impl.util.ranking import best_first
from dalle_mini_impl.util.tables import aligned_table

TIMED_PROMPTS = 3
"""Prompts timed for each method and number of candidates, of which the median counts."""


class RankingMethod(NamedTuple):
    """How the best candidate is chosen."""

    score: str
    """Key of `CandidateScores.totals`, or `chance`."""
    rank: str
    """`rank` argument of `DalleMini.generate` whose time is measured."""
    prune: bool = False
    """`prune` argument of `DalleMini.generate`."""


METHODS = {
    "chance": RankingMethod("chance", "none"),
    "ratio": RankingMethod("ratio", "likelihood"),
    "ratio + clip": RankingMethod("ratio + clip", "both"),
    "likelihood": RankingMethod("likelihood", "likelihood"),
    "clip": RankingMethod("clip", "clip"),
    "both": RankingMethod("both", "both"),
    "likelihood, pruned": RankingMethod("likelihood", "likelihood", True),
    "both, pruned": RankingMethod("both", "both", True),
}
"""`likelihood`, `clip` and `both`, their sum, are those of `DalleMini.generate`. `ratio` is the likelihood given the
caption divided by that without it, `chance` the mean over all candidates."""
CLIP_WEIGHTS = (0.5, 1, 2, 4, 8, 12, 16, 32)
"""`clip_weight` of `DalleMini.generate` that `both` is tried with."""
PLOTTED = ("likelihood", "clip", "both", "likelihood, pruned", "both, pruned")
"""Methods that `DalleMini.generate` offers."""

Seconds = dict[tuple[str, bool, int], float]
"""(`rank`, `prune`, candidates) -> seconds per prompt."""


@dataclass(frozen=True)
class CurvePoint:
    """Quality and cost of the best of N by one ranking method."""

    method: str
    candidates: int
    seconds: float
    """Per prompt, from text to the best picture; median of several."""
    shares: dict[str, tuple[Share, ...]]
    """Judge -> fraction of hits at each depth of `TOP_K`."""


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """What ranking methods compare, for candidates in the order of their seeds."""

    totals: dict[str, Tensor]
    """Score name -> (..., N), the higher the better."""
    cumulative: Tensor
    """(..., N, h * w): log-likelihood in nats up to and including each image id, by which candidates are pruned."""


def score_candidates(dalle: DalleMini, result: Result) -> CandidateScores:
    """Every score of the candidates of one prompt, in their order."""
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    cumulative = _log_likelihood(dalle, result, image_ids).cumsum(1)
    without_caption = dalle.log_likelihood("", image_ids).sum(1)
    cosines = dalle.scorer.cosines([candidate.image for candidate in result], result.prompt)
    likelihood = cumulative[:, -1]
    clip = dalle.sampling.clip_weight * dalle.scorer.scale * cosines
    ratio = likelihood - without_caption
    totals = {
        "ratio": ratio,
        "ratio + clip": ratio + clip,
        "likelihood": likelihood,
        "clip": cosines,
        "both": likelihood + clip,
    }
    return CandidateScores(totals, cumulative)


def _log_likelihood(dalle: DalleMini, result: Result, image_ids: Tensor) -> Tensor:
    """(N, h * w): of each image id given what the candidate was drawn from, caption and embedding of the prior."""
    seeds = [candidate.seed for candidate in result]
    chosen = result.settings["sampling"]["prior"]
    if not (embeds := draw_embeds(chosen, result.prompt, seeds, dalle.prior, dalle.own_scorer)):
        return dalle.log_likelihood(result.prompt, image_ids)
    model, text_ids = (dalle.transformer, dalle.stream), dalle.encode(result.prompt)
    pairs = zip(image_ids[:, None], embeds, strict=True)
    return torch.cat([log_likelihood(*model, text_ids, ids, embed).cpu() for ids, embed in pairs])


def hit_rate_of_best(hits: Tensor, scores: Tensor | None, count: int) -> Tensor:
    """Fraction of hits (prompts,) among the best of each group of `count` candidates.

    Candidates form as many whole groups as there are; those left over are ignored.

    Args:
        hits: (prompts, N) bool.
        scores: (prompts, N), the higher the better, the first of equal ones winning; None chooses at random.
        count: size of a group, at most N.
    """
    grouped_hits = _groups(hits, count).double()
    if scores is None:
        return grouped_hits.mean((1, 2))
    best = best_first(_groups(scores, count))[..., :1]
    return grouped_hits.gather(2, best).mean((1, 2))


def prune_scores(scores: Tensor, cumulative: Tensor, count: int) -> Tensor:
    """Scores with minus infinity for the candidates that `generate(prune=True)` would drop from a group of `count`.

    Args:
        scores: (prompts, N).
        cumulative: (prompts, N, h * w), see `CandidateScores`.
        count: size of a group.

    Returns:
        (prompts, N); candidates outside whole groups are minus infinity too.
    """
    result = torch.full_like(scores, -torch.inf)
    length = cumulative.shape[2]
    for row, nats in enumerate(cumulative):
        for start in range(0, scores.shape[1] // count * count, count):
            remaining = torch.arange(start, start + count)
            for done in range(1, length):
                selected = candidates_to_keep(nats[remaining, done - 1], 1, done, length)
                remaining = remaining if selected is None else remaining[selected]
            result[row, remaining] = scores[row, remaining]
    return result


def build_curve(pictures: GeneratedPictures, scores: CandidateScores, seconds: Seconds) -> list[CurvePoint]:
    """Points for every method and N = 1, 2, 4 … up to all candidates.

    Args:
        pictures: candidates in the order of their seeds.
        scores: with a leading dimension of prompts.
        seconds: from `measure_seconds`.
    """
    points = []
    for name, method in METHODS.items():
        for count in powers_of_two(len(pictures.results[0])):
            values = scores.totals.get(method.score)
            if values is not None and method.prune:
                values = prune_scores(values, scores.cumulative, count)
            shares = _shares_of_best(pictures, values, count)
            points.append(CurvePoint(name, count, seconds[method.rank, method.prune, count], shares))
    return points


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 … up to `limit`."""
    return [2**exponent for exponent in range(limit.bit_length())]


def measure_seconds(dalle: DalleMini, prompts: Sequence[str], limit: int) -> Seconds:
    """Median seconds from text to the best picture, for each pair of `rank` and `prune` in use.

    Args:
        dalle: the model.
        prompts: to time; the first one also warms up.
        limit: most candidates.
    """
    seconds: Seconds = {}
    for rank, prune in dict.fromkeys((method.rank, method.prune) for method in METHODS.values()):
        for count in powers_of_two(limit):
            # A random candidate needs one candidate only.
            options: dict[str, Any] = {"candidates": 1 if rank == "none" else count, "keep": 1}
            dalle.generate(prompts[0], rank=rank, prune=prune, **options)
            timings = []
            for prompt in prompts:
                start = time.perf_counter()
                dalle.generate(prompt, rank=rank, prune=prune, **options)
                timings.append(time.perf_counter() - start)
            seconds[rank, prune, count] = statistics.median(timings)
    return seconds


def weight_rows(pictures: GeneratedPictures, scores: CandidateScores, scale: float) -> list[ShareRow]:
    """R-precision of the best of all candidates by `both`, for each of `CLIP_WEIGHTS`.

    Args:
        pictures: candidates in the order of their seeds.
        scores: with a leading dimension of prompts.
        scale: the scorer's.
    """
    rows = []
    for weight in CLIP_WEIGHTS:
        values = scores.totals["likelihood"] + weight * scale * scores.totals["clip"]
        shares = _shares_of_best(pictures, values, len(pictures.results[0]))
        rows.append(ShareRow(f"by both, clip_weight {weight:g}", len(pictures.results), shares))
    return rows


def _shares_of_best(pictures: GeneratedPictures, values: Tensor | None, count: int) -> dict[str, tuple[Share, ...]]:
    """R-precision, by every judge, of the best of `count` candidates; `values` as in `hit_rate_of_best`."""
    return {
        judge: tuple(mean_share(hit_rate_of_best(ranks < k, values, count).tolist()) for k in TOP_K)
        for judge, ranks in pictures.ranks.items()
    }


def measure_rerank(context: EvaluationContext) -> tuple[list[CurvePoint], list[ShareRow]]:
    """Generate candidates for held-out pairs that no other figure uses, and rank them by every method and weight."""
    settings = context.settings
    indices = sample_indices(context.reference, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    pictures = generate_pictures(context, indices, "drawing", rank="none")
    per_prompt = [score_candidates(context.dalle, result) for result in pictures.results]
    totals = {name: torch.stack([scores.totals[name] for scores in per_prompt]) for name in per_prompt[0].totals}
    scores = CandidateScores(totals, torch.stack([scores.cumulative for scores in per_prompt]))
    prompts = [result.prompt for result in pictures.results[:TIMED_PROMPTS]]
    points = build_curve(pictures, scores, measure_seconds(context.dalle, prompts, settings.candidates))
    return points, weight_rows(pictures, scores, context.dalle.scorer.scale)


def accuracy_table(points: Sequence[CurvePoint], judge: str) -> str:
    """Top-5 by one judge: a line for each method, a column for each N."""
    return _method_table(points, "top-5 of the best of", lambda point: point.shares[judge][TOP_K.index(5)].value)


def seconds_table(points: Sequence[CurvePoint]) -> str:
    """Seconds per prompt: a line for each method, a column for each N."""
    return _method_table(points, "seconds for a prompt", lambda point: point.seconds)


def plot_curve(points: Sequence[CurvePoint], path: str | Path) -> Path:
    """Plot top-5 by the first judge over seconds, a line for each method that `generate` offers.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    judge = next(iter(points[0].shares))
    top5 = TOP_K.index(5)
    for name in PLOTTED:
        line = [point for point in points if point.method == name]
        heights = [point.shares[judge][top5].value for point in line]
        style = "--o" if METHODS[name].prune else "-o"
        axes.plot([point.seconds for point in line], heights, style, ms=4, label=name)
        axes.annotate(str(line[-1].candidates), (line[-1].seconds, heights[-1]), (4, 4), textcoords="offset points")
    chance = next(point for point in points if point.method == "chance").shares[judge][top5].value
    axes.axhline(chance, color="gray", lw=0.8, label="a random candidate")
    axes.set_xscale("log")
    axes.set_xlabel("seconds for a prompt")
    axes.set_ylabel(f"best of 1, 2, 4 … : top-5 ({judge})")
    axes.legend()
    return save_figure(figure, path)


def _method_table(points: Sequence[CurvePoint], title: str, value: Callable[[CurvePoint], float]) -> str:
    counts = sorted({point.candidates for point in points})
    values = {(point.method, point.candidates): value(point) for point in points}
    rows = [[title, *map(str, counts)]]
    rows += [[f"  by {method}", *(f"{values[method, count]:.2f}" for count in counts)] for method in METHODS]
    return aligned_table(rows, right=range(1, len(counts) + 1), min_widths=[24, *[7] * len(counts)], gap=0)


def _groups(values: Tensor, count: int) -> Tensor:
    """(prompts, N) -> (prompts, whole groups, count)."""
    groups = values.shape[1] // count
    return values[:, : groups * count].unflatten(1, (groups, count))
