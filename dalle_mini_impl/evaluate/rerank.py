"""How much ranking gains: R-precision of the best of N candidates by each way of choosing it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_mini_impl.evaluate.generation import Drawing, Setup, draw, pick
from dalle_mini_impl.evaluate.report import TOP, Share, share
from dalle_mini_impl.pipeline import DalleMini, likelihood_score
from dalle_mini_impl.results import Result

WAYS = ("chance", "clip", "caption", "ratio", "likelihood", "both")
"""`clip`, `likelihood` and `both` are what `generate` offers. `caption` is the likelihood given the caption alone,
`ratio` that over the likelihood without caption, `chance` the mean candidate."""


@dataclass(frozen=True)
class Point:
    """Quality of the best of N by one way of choosing."""

    way: str
    candidates: int
    shares: dict[str, tuple[Share, ...]]
    """Judge -> top-1 and top-5."""


def scores(dalle: DalleMini, result: Result) -> dict[str, Tensor]:
    """Every way's score (N,) of the candidates of one prompt, in their order."""
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    given, null = (dalle.log_likelihood(text, image_ids).sum(1) for text in (result.prompt, ""))
    cosines = dalle.scorer.cosines([candidate.image for candidate in result], result.prompt)
    likelihood = likelihood_score(given, null)
    return {"clip": cosines, "caption": given, "ratio": given - null, "likelihood": likelihood,
            "both": likelihood + dalle.scorer.scale * cosines}  # fmt: skip


def best_of(hits: Tensor, scored: Tensor | None, count: int) -> Tensor:
    """Chance (prompts,) that the best of `count` is a hit, over as many whole groups as the candidates make.

    Args:
        hits: (prompts, N) bool.
        scored: (prompts, N), the higher the better, the first of equal ones winning; None chooses at random.
        count: size of a group, at most N.
    """
    groups = hits.shape[1] // count
    hits = hits[:, : groups * count].reshape(-1, groups, count).double()
    if scored is None:
        return hits.mean((1, 2))
    best = scored[:, : groups * count].reshape(-1, groups, count).argmax(2, keepdim=True)
    return hits.gather(2, best).mean((1, 2))


def curve(drawing: Drawing, scored: dict[str, Tensor]) -> list[Point]:
    """Points for every way and N = 1, 2, 4 … up to all candidates.

    Args:
        drawing: pictures in the order of their seeds.
        scored: way -> (prompts, N).
    """
    total, points = len(drawing.results[0]), []
    counts = [2**n for n in range(total.bit_length())]
    for way in WAYS:
        for count in counts:
            shares = {
                judge: tuple(share(best_of(ranks < k, scored.get(way), count).tolist()) for k in TOP)
                for judge, ranks in drawing.ranks.items()
            }
            points.append(Point(way, count, shares))
    return points


def rerank(setup: Setup) -> list[Point]:
    """Draw for held-out pairs that no other figure uses, and rank in every way."""
    settings = setup.settings
    numbers = pick(setup.art, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    drawing = draw(setup, numbers, "drawing", rank="none")
    every = [scores(setup.dalle, result) for result in drawing.results]
    return curve(drawing, {way: torch.stack([one[way] for one in every]) for way in every[0]})


def table(points: Sequence[Point], judge: str) -> str:
    """Top-5 by one judge: a line for each way, a column for each N."""
    counts = sorted({point.candidates for point in points})
    found = {(point.way, point.candidates): point.shares[judge][TOP.index(5)].value for point in points}
    lines = [f"{'top-5 of the best of':22}" + "".join(f"{count:>6}" for count in counts)]
    lines += [f"{'  by ' + way:22}" + "".join(f"{found[way, count]:6.2f}" for count in counts) for way in WAYS]
    return "\n".join(lines)
