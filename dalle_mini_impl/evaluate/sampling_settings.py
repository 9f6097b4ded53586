"""Chooses a model's sampling defaults: the temperature, guidance, top-k and ranking whose pictures fit their captions.

Every setting draws the same captions from the same seeds. A judge, which took no part in training, says how well each
picture resembles the real picture of its caption among those of all others (`RPrecision.log_probabilities`). Captions
are held-out ones as far as there are enough. Settings are compared by successive halving (Jamieson & Talwalkar 2016)
within a budget of seconds: many of them on a few captions, the best on more, and the best two, beside the model's own,
with about as many candidates as one draws in use.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.evaluate.judges import Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.evaluate.reference_pictures import (
    CHUNK,
    ReferencePictures,
    has_features,
    prompt_of,
    reference_features,
)
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels
from dalle_mini_impl.util.ranking import best_first

TEMPERATURES = (0.7, 0.5, 1.0)
"""Temperatures to try; here and below those likeliest to be good first, as a short time tries the first ones only."""
GUIDANCES = (1.5, 1.0, 3.0)
"""Guidance scales to try."""
TOP_KS = (0.125, 1.0)
"""Top-k to try, as shares of the codebook."""
KEPT_SHARE = 0.25
"""Share of the candidates that is measured, the best ones: what one looks at when `dalle sample` keeps 8 of 32."""
TOP = 5
"""A caption counts as recognised if it is among this many nearest."""
MIN_CAPTIONS = 4
"""Captions that each setting must have drawn, or nothing is concluded."""
ENOUGH_CAPTIONS = 32
"""With fewer held-out captions, captions of the training split are drawn as well."""
MAX_CAPTIONS = 256
"""Captions that are drawn at most, before they are drawn again from other seeds."""
REFERENCE_SHARE = 0.25
"""Largest share of the time for the judge's features of real pictures; where it does not do, some are left out."""
TIMED_PICTURES = 32
"""Real pictures by which the judge's speed is measured."""


class Round(NamedTuple):
    """One round of the halving."""

    candidates: int
    """Pictures for each caption and setting."""
    settings: int
    """Settings that are tried at most; the last round also tries the model's own."""
    end: float
    """Share of the time after which it ends."""


ROUNDS = (Round(4, 18, 0.5), Round(8, 5, 0.75), Round(16, 2, 1.0))
"""The rounds in their order; the judge's features of real pictures count to the first."""


@dataclass(frozen=True)
class Captions:
    """What is drawn."""

    indices: tuple[int, ...]
    """Of reference pictures, whose captions are the prompts."""
    held_out: int
    """How many of these pictures are held out."""

    @property
    def description(self) -> str:
        """Which captions these are."""
        training = len(self.indices) - self.held_out
        held_out = f"{self.held_out} held-out caption{'s' * (self.held_out != 1)}"
        return f"{held_out} and {training} of the training split" if training else held_out


@dataclass(frozen=True)
class Trial:
    """One setting in one round."""

    sampling: SamplingConfig
    """What was tried; `fits` has every ranking."""
    candidates: int
    """Per caption."""
    fits: Mapping[str, tuple[float, ...]]
    """Ranking -> for each caption the mean fit of the best quarter of the candidates; see `RPrecision`."""
    recognised: Mapping[str, float]
    """Ranking -> share of captions that are recognised in their best candidate (for `none`: mean of candidates)."""

    @property
    def best_rank(self) -> str:
        """The ranking that puts the best candidates first."""
        return max(self.fits, key=self.fit)

    def fit(self, rank: str) -> float:
        """Mean fit with a ranking."""
        return statistics.fmean(self.fits[rank])


@dataclass(frozen=True)
class SamplingChoice:
    """What was chosen, and why."""

    sampling: SamplingConfig
    """The settings to use."""
    before: SamplingConfig
    """Those that the model had."""
    judge: str
    """By which pictures were measured."""
    captions: Captions
    """What was drawn."""
    concepts: int
    """Captions among which the right one was to be found."""
    rounds: tuple[tuple[Trial, ...], ...]
    """All that was tried, best first; empty where the time was too short to try anything."""
    seconds: float
    """That it took."""


def settings_to_try(own: SamplingConfig, codebook_size: int) -> list[SamplingConfig]:
    """The model's own setting, then all combinations, those likeliest to be good first."""
    grid = itertools.product(enumerate(TEMPERATURES), enumerate(GUIDANCES), enumerate(TOP_KS))
    settings = [own]
    for (_, temperature), (_, guidance), (_, share) in sorted(grid, key=lambda one: sum(place for place, _ in one)):
        top_k = 0 if share == 1 else max(1, round(share * codebook_size))
        settings.append(dataclasses.replace(own, temperature=temperature, guidance=guidance, top_k=top_k, top_p=1.0))
    return list(dict.fromkeys(settings))


def choose_captions(reference: ReferencePictures, seed: int = 0) -> Captions:
    """Pictures of different captions at random, held-out ones first.

    Pictures of the training split follow where there are fewer than `ENOUGH_CAPTIONS` held-out captions.
    """
    random = np.random.default_rng(seed)
    entries = reference.store.entries
    chosen: dict[int, int] = {}  # concept -> picture
    counts = []
    for split, limit in (("validation", MAX_CAPTIONS), ("train", ENOUGH_CAPTIONS)):
        of_split = sorted((i for i, entry in enumerate(entries) if entry.split == split), key=lambda i: entries[i].key)
        for index in random.permutation(of_split).tolist():
            if len(chosen) < limit:
                chosen.setdefault(int(reference.concept_ids[index]), index)
        counts.append(len(chosen))
    return Captions(tuple(chosen.values()), counts[0])


def measure_within(
    reference: ReferencePictures, judge: Judge, captions: Captions, seconds: float, seed: int
) -> tuple[RPrecision, Tensor]:
    """Compute the judge's features of all reference pictures, or of as many as there is time for.

    Args:
        reference: the pictures.
        judge: computes the features; all of them are kept for the next time, some are not.
        captions: their pictures are among those used in any case.
        seconds: how long it may take.
        seed: determines which others are used.

    Returns:
        The measure, and the concept (n,) of every reference picture in it, -1 for those that are left out.
    """
    count = len(reference.store)
    start = time.monotonic()
    judge.features(reference.pixels(range(min(TIMED_PICTURES, count))))
    affordable = int(seconds / (time.monotonic() - start) * min(TIMED_PICTURES, count))
    if affordable >= count or has_features(reference, judge):
        indices = torch.arange(count)
        features = reference_features(reference, {judge.name: judge})[judge.name]
    else:
        others = np.setdiff1d(np.arange(count), captions.indices)
        others = np.random.default_rng(seed).permutation(others)[: max(0, affordable - len(captions.indices))]
        indices = torch.tensor([*captions.indices, *others.tolist()])
        features = torch.cat([judge.features(reference.pixels(part.tolist())) for part in indices.split(CHUNK)])
    _, own_ids = reference.concept_ids[indices].unique(return_inverse=True)
    concept_ids = torch.full((count,), -1)
    concept_ids[indices] = own_ids
    return build_r_precision(judge, features, own_ids, reference.vendor_ids[indices]), concept_ids


def choose_sampling(
    dalle: DalleMini,
    reference: ReferencePictures,
    judge: Judge,
    seconds: float,
    *,
    seed: int = 0,
    progress: Callable[[float], object] = lambda share: None,
) -> SamplingChoice:
    """Try settings on captions of the reference pictures, and return those whose pictures fit best.

    Args:
        dalle: the model.
        reference: pictures of the kind it was trained on, of both splits.
        judge: says what pictures resemble.
        seconds: that it may take.
        seed: determines captions and candidates.
        progress: called with the share of the time that has passed, 0 to 1.

    Returns:
        The choice: the model's own settings where the time is too short to try others.

    Raises:
        UserError: `seconds` is not a number above 0.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"expected a time above 0 to choose sampling settings in, got {seconds} seconds; give more")
    clock = _Clock(time.monotonic(), seconds, progress)
    captions = choose_captions(reference, seed)
    measure, concept_ids = measure_within(reference, judge, captions, seconds * REFERENCE_SHARE, seed)
    drawing = _Drawing(dalle, reference, measure, concept_ids, captions, seed)
    own = dataclasses.replace(dalle.sampling, prune=False, tile=False, rank="none")
    settings = settings_to_try(own, dalle.image_tokenizer.codebook_size)
    rounds: list[tuple[Trial, ...]] = []
    drawing.draw(own, 0, 1)  # what the first call takes longer must not count
    for number, round_ in enumerate(ROUNDS):
        settings = settings[: round_.settings]
        if number == len(ROUNDS) - 1 and own not in settings:
            settings.append(own)
        trials = drawing.try_settings(settings, round_, clock)
        if not trials:
            break
        rounds.append(trials)
        settings = [trial.sampling for trial in trials]
    chosen = dalle.sampling
    if rounds:
        best = rounds[-1][0]
        kept = {"prune": dalle.sampling.prune, "tile": dalle.sampling.tile}
        chosen = dataclasses.replace(best.sampling, rank=best.best_rank, **kept)
    return SamplingChoice(
        chosen, dalle.sampling, judge.name, captions, measure.concept_count, tuple(rounds), clock.passed
    )


@dataclass(frozen=True)
class _Clock:
    """How much of the time has passed."""

    start: float
    seconds: float
    """The whole time."""
    progress: Callable[[float], object]

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def left_until(self, share: float) -> float:
        """Seconds until a share of the time has passed; reports progress."""
        self.progress(min(1.0, self.passed / self.seconds))
        return share * self.seconds - self.passed


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Draws captions and measures the pictures."""

    dalle: DalleMini
    reference: ReferencePictures
    measure: RPrecision
    concept_ids: Tensor
    """(n,) of all reference pictures, as `measure` counts concepts."""
    captions: Captions
    seed: int

    def try_settings(self, settings: Sequence[SamplingConfig], round_: Round, clock: _Clock) -> tuple[Trial, ...]:
        """Draw the same captions, one after the other, with every setting until the round's time is over.

        Settings are cut to as many as can draw `MIN_CAPTIONS` in that time.

        Returns:
            The trials, best first; none if there was no time for `MIN_CAPTIONS` with two settings.
        """
        measured: list[list[dict[str, tuple[float, float]]]] = [[] for _ in settings]
        start, count = clock.passed, len(settings)
        for number in itertools.count():
            for place, sampling in enumerate(settings[:count]):
                measured[place].append(self.draw(sampling, number, round_.candidates))
                if number == 0:
                    each = (clock.passed - start) / (place + 1)
                    affordable = (clock.left_until(round_.end) + clock.passed - start) / (each * MIN_CAPTIONS)
                    count = min(count, max(2, int(affordable)))
                if place + 1 >= count:
                    break
            each = (clock.passed - start) / (number + 1)
            if clock.left_until(round_.end) < each:
                break
        if number + 1 < MIN_CAPTIONS:
            return ()
        trials = [
            make_trial(sampling, round_.candidates, values)
            for sampling, values in zip(settings[:count], measured[:count], strict=True)
        ]
        return tuple(sorted(trials, key=lambda trial: -trial.fit(trial.best_rank)))

    def draw(self, sampling: SamplingConfig, number: int, candidates: int) -> dict[str, tuple[float, float]]:
        """Draw a caption; ranking -> (fit of the best quarter of the candidates, whether the best is recognised).

        Args:
            sampling: settings to draw with.
            number: of the drawing: the place of its caption, again from the first one after the last one.
            candidates: how many.
        """
        index = self.captions.indices[number % len(self.captions.indices)]
        prompt = prompt_of(self.reference.store.entries[index]) or ""
        options = {**dataclasses.asdict(sampling), "rank": "likelihood", "seed": candidate_seed(self.seed, number)}
        result = self.dalle.generate(prompt, candidates, candidates, **options)
        images = [candidate.image for candidate in result]
        likelihood = torch.tensor([candidate.score or -math.inf for candidate in result])
        scores = {"likelihood": likelihood}
        if self.dalle.has_scorer:
            cosines = self.dalle.scorer.cosines(images, prompt)
            scores |= {"clip": cosines, "both": likelihood + self.dalle.scorer.scale * cosines}
        features = self.measure.features_of(to_pixels(images, self.reference.size))
        concept_ids = self.concept_ids[index].expand(len(images))
        fits = self.measure.log_probabilities(features, concept_ids)
        hits = (self.measure.ranks(features, concept_ids) < TOP).float()
        kept = max(1, round(KEPT_SHARE * candidates))
        orders = {rank: best_first(values) for rank, values in scores.items()}
        found = {rank: (float(fits[order[:kept]].mean()), float(hits[order[0]])) for rank, order in orders.items()}
        return {**found, "none": (float(fits.mean()), float(hits.mean()))}


def make_trial(
    sampling: SamplingConfig, candidates: int, measured: Sequence[Mapping[str, tuple[float, float]]]
) -> Trial:
    """Collect what `_Drawing.draw` returned for each caption."""
    fits = {rank: tuple(values[rank][0] for values in measured) for rank in measured[0]}
    recognised = {rank: statistics.fmean(values[rank][1] for values in measured) for rank in measured[0]}
    return Trial(sampling, candidates, fits, recognised)
