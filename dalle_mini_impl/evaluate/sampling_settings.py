"""Chooses a model's sampling defaults: the temperature, guidance, top-k and ranking whose pictures fit their captions.

Every setting draws the same captions from the same seeds. A judge, which took no part in training, says how well each
picture resembles the real picture of its caption among those of all others (`RPrecision.log_probabilities`). Held-out
captions and captions of the training split take turns: a model of some hundred pictures hardly draws the former, whose
figures alone are noise. Settings are compared by successive halving (Jamieson & Talwalkar 2016) within a budget of
seconds: many of them on a few captions, the best on more, and the best two, beside the model's own, with about as many
candidates as one draws in use.
"""

import dataclasses
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.evaluate.judges import Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision
from dalle_mini_impl.evaluate.reference_pictures import ReferencePictures, prompt_of
from dalle_mini_impl.evaluate.sampling_captions import SHORTEST_TIME, Captions, choose_captions, measure_within
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels
from dalle_mini_impl.util.ranking import best_first

TEMPERATURES = (0.6, 0.4, 0.8, 1.0)
"""Temperatures to try; here and below those likeliest to be good first, as a short time tries the first ones only."""
GUIDANCES = (1.5, 2.5, 1.0)
"""Guidance scales to try."""
TOP_K_SHARES = (1 / 8, 1 / 32, 1)
"""Top-k to try, as shares of the codebook: the first with every temperature and guidance, the others with the best."""
KEPT_SHARE = 0.25
"""Share of the candidates that is measured, the best ones: what one looks at when `dalle sample` keeps 8 of 32."""
TOP = 5
"""A caption counts as recognised if it is among this many nearest."""
MIN_CAPTIONS = 8
"""Captions that each setting must have drawn, or nothing is concluded."""
REFERENCE_SHARE = 0.25
"""Largest share of the time for the judge's features of real pictures; where it does not do, some are left out."""
ALIKE = 0.05
"""Settings whose fit is within this many nats of the best draw equally well."""
PATIENCE = 1.5
"""A round is given up when it would take this many times the time that is left to draw `MIN_CAPTIONS`."""


class Round(NamedTuple):
    """One round of the halving."""

    candidates: int
    """Pictures for each caption and setting."""
    settings: int
    """Settings that come from the round before, the best ones."""
    end: float
    """Share of the time after which it ends."""


ROUNDS = (Round(4, 99, 0.45), Round(8, 3, 0.7), Round(16, 2, 1.0))
"""Temperature and guidance; the best of these, and other top-k with the best one; the best two and the model's own."""


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
    held_out: tuple[bool, ...]
    """Which of these captions are held out."""

    @property
    def best_rank(self) -> str:
        """The ranking that puts the best candidates first; `none` only if it is better by two standard errors."""
        best = max((rank for rank in self.fits if rank != "none"), key=self.fit)
        losses = [none - ranked for none, ranked in zip(self.fits["none"], self.fits[best], strict=True)]
        error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
        return "none" if statistics.fmean(losses) > 2 * error else best

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

    @property
    def best(self) -> Trial | None:
        """The trial of the last round that was chosen: of those that draw equally well, the one of the highest
        temperature, whose candidates differ most. None where nothing was tried.
        """
        if not self.rounds:
            return None
        fits = [trial.fit(trial.best_rank) for trial in self.rounds[-1]]
        alike = [trial for trial, fit in zip(self.rounds[-1], fits, strict=True) if fit >= max(fits) - ALIKE]
        return max(alike, key=lambda trial: trial.sampling.temperature)


def first_settings(own: SamplingConfig, codebook_size: int) -> list[SamplingConfig]:
    """The model's own setting, then temperatures and guidances, those likeliest to be good first."""
    grid = itertools.product(enumerate(TEMPERATURES), enumerate(GUIDANCES))
    top_k = top_ks(codebook_size)[0]
    settings = [own]
    for (_, temperature), (_, guidance) in sorted(grid, key=lambda one: one[0][0] + one[1][0]):
        settings.append(dataclasses.replace(own, temperature=temperature, guidance=guidance, top_k=top_k, top_p=1.0))
    return list(dict.fromkeys(settings))


def top_ks(codebook_size: int) -> list[int]:
    """`TOP_K_SHARES` of a codebook; 0 for all of it."""
    return [0 if share == 1 else max(1, round(share * codebook_size)) for share in TOP_K_SHARES]


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
    own = dataclasses.replace(dalle.sampling, prune=False, tile=False, transparent=False, rank="none")
    codebook_size = dalle.image_tokenizer.codebook_size
    settings = first_settings(own, codebook_size)
    rounds: list[tuple[Trial, ...]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "caption .* cut off")  # they are cut for all settings alike
        drawing.draw(own, 0, 1)  # what the first call takes longer must not count
        for number, round_ in enumerate(ROUNDS):
            settings = settings[: round_.settings]
            if number == 1:
                settings += [dataclasses.replace(settings[0], top_k=top_k) for top_k in top_ks(codebook_size)]
            elif number == 2:
                settings.insert(1, own)
            trials = drawing.try_settings(list(dict.fromkeys(settings)), round_, clock)
            if not trials:
                break
            rounds.append(trials)
            settings = distinct_settings(trials)
    choice = SamplingChoice(
        dalle.sampling, dalle.sampling, judge.name, captions, measure.concept_count, tuple(rounds), clock.passed
    )
    if choice.best is None:
        return choice
    kept = {
        name: getattr(dalle.sampling, name) for name in ("clip_weight", "diversity", "prune", "tile", "transparent")
    }
    best = dataclasses.replace(choice.best.sampling, rank=choice.best.best_rank, **kept)
    return dataclasses.replace(choice, sampling=best)


def distinct_settings(trials: Sequence[Trial]) -> list[SamplingConfig]:
    """Settings of trials, best first; of those that drew the same pictures, as top-k at low temperatures, the first."""
    distinct: dict[tuple[float, ...], SamplingConfig] = {}
    for trial in trials:
        distinct.setdefault(trial.fits["none"], trial.sampling)
    return list(distinct.values())


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

        Only as many settings are tried, the first ones, as can draw `MIN_CAPTIONS` in that time, but at least two.

        Returns:
            The trials, best first; none if there was no time at all for `MIN_CAPTIONS` with two settings.
        """
        measured: list[list[dict[str, tuple[float, float]]]] = [[] for _ in settings]
        start, draws, count = clock.passed, 0, len(settings)
        for number in itertools.count():
            place = 0
            while place < count:
                measured[place].append(self.draw(settings[place], number, round_.candidates))
                place, draws = place + 1, draws + 1
                left = clock.left_until(round_.end)
                each = max(clock.passed - start, SHORTEST_TIME) / draws
                if number < MIN_CAPTIONS:
                    affordable = int((left / each + place) / (MIN_CAPTIONS - number))
                    count = min(count, max(2, affordable))
            missing = max(0, MIN_CAPTIONS - number - 1)
            if missing and each * count * missing > PATIENCE * clock.left_until(1):
                return ()
            if not missing and left < each * count:
                break
        trials = [
            make_trial(sampling, round_.candidates, values, self.captions.held_out)
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
        likelihood = torch.tensor([-math.inf if one.score is None else one.score for one in result])
        scores = {"likelihood": likelihood}
        if self.dalle.has_scorer:
            cosines = self.dalle.scorer.cosines(images, prompt)
            scale = sampling.clip_weight * self.dalle.scorer.scale
            scores |= {"clip": cosines, "both": likelihood + scale * cosines}
        features = self.measure.features_of(to_pixels(images, self.reference.size))
        concept_ids = self.concept_ids[index].expand(len(images))
        fits = self.measure.log_probabilities(features, concept_ids)
        hits = (self.measure.ranks(features, concept_ids) < TOP).float()
        kept = max(1, round(KEPT_SHARE * candidates))
        orders = {rank: best_first(values) for rank, values in scores.items()}
        found = {rank: (float(fits[order[:kept]].mean()), float(hits[order[0]])) for rank, order in orders.items()}
        return {**found, "none": (float(fits.mean()), float(hits.mean()))}


def make_trial(
    sampling: SamplingConfig,
    candidates: int,
    measured: Sequence[Mapping[str, tuple[float, float]]],
    held_out: Sequence[bool],
) -> Trial:
    """Collect what `_Drawing.draw` returned for each caption, of which `held_out` says whether it is held out."""
    fits = {rank: tuple(values[rank][0] for values in measured) for rank in measured[0]}
    recognised = {rank: statistics.fmean(values[rank][1] for values in measured) for rank in measured[0]}
    return Trial(
        sampling, candidates, fits, recognised, tuple(itertools.islice(itertools.cycle(held_out), len(measured)))
    )
