"""What `sampling_settings.choose_sampling` found, as text for a reader and as JSON."""

import dataclasses
import math
import statistics
from typing import Any

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.evaluate.intervals import NORMAL_QUANTILE
from dalle_mini_impl.evaluate.sampling_settings import TOP, SamplingChoice, Trial
from dalle_mini_impl.util.tables import aligned_table

SCORER_RANKS = ("both", "clip")
"""Rankings that use the scorer."""


def describe_sampling(sampling: SamplingConfig) -> str:
    """The settings that are chosen, as `temperature 0.7, guidance 1.5, top-k 128, rank both`."""
    return (
        f"temperature {sampling.temperature:g}, guidance {sampling.guidance:g}, top-k {sampling.top_k or 'all'}, "
        f"rank {sampling.rank}"
    )


def choice_text(choice: SamplingChoice) -> str:
    """A table of the last round, what was chosen, and whether the scorer helps."""
    captions = choice.captions.description
    if choice.best is None:
        return (
            f"{choice.seconds:.0f} s were too short to try sampling settings on {captions}: kept "
            f"{describe_sampling(choice.sampling)}"
        )
    last = choice.rounds[-1]
    tried = f"{len(choice.rounds[0])} settings tried in {choice.seconds:.0f} s"
    lines = [
        f"{tried} on {captions} among {choice.concepts} captions, judged by {choice.judge}: mean log-probability "
        f"of the right caption in nats, of the best quarter of {last[0].candidates} candidates by each ranking, and "
        f"share of captions among the nearest {TOP} of the best candidate",
        _table(last),
        f"chosen: {describe_sampling(choice.sampling)} (before: {describe_sampling(choice.before)})",
    ]
    return "\n".join([*lines, *_scorer_line(choice.best)])


def choice_as_json(choice: SamplingChoice) -> dict[str, Any]:
    """All of a choice but the figure of each caption, as plain values."""
    return {
        "sampling": to_dict(choice.sampling),
        "before": to_dict(choice.before),
        "judge": choice.judge,
        "held_out_captions": sum(choice.captions.held_out),
        "training_captions": len(choice.captions.held_out) - sum(choice.captions.held_out),
        "concepts": choice.concepts,
        "rounds": [[_trial_as_json(trial) for trial in trials] for trials in choice.rounds],
        "seconds": round(choice.seconds, 1),
    }


def scorer_gain(trial: Trial, held_out: bool = False) -> tuple[float, float] | None:
    """How many nats the better ranking with the scorer gains over likelihood alone, and half its 95 % interval.

    Args:
        trial: of the chosen setting.
        held_out: count held-out captions alone.

    Returns:
        None where there is no scorer, or fewer than two captions.
    """
    ranks = [rank for rank in SCORER_RANKS if rank in trial.fits]
    if not ranks:
        return None
    pairs = zip(trial.fits[max(ranks, key=trial.fit)], trial.fits["likelihood"], trial.held_out, strict=True)
    gains = [with_scorer - without for with_scorer, without, is_held_out in pairs if is_held_out or not held_out]
    if len(gains) < 2:
        return None
    return statistics.fmean(gains), NORMAL_QUANTILE * statistics.stdev(gains) / math.sqrt(len(gains))


def _scorer_line(trial: Trial) -> list[str]:
    gain, of_held_out = scorer_gain(trial), scorer_gain(trial, held_out=True)
    if gain is None:
        return []
    amount = f"{gain[0]:+.2f} nats (± {gain[1]:.2f}) over ranking by likelihood alone"
    if of_held_out and not all(trial.held_out):
        amount += f"; on held-out captions {of_held_out[0]:+.2f} (± {of_held_out[1]:.2f})"
    if trial.best_rank in SCORER_RANKS and gain[0] > gain[1]:
        return [f"the scorer helps: {amount}"]
    if trial.best_rank in SCORER_RANKS:
        return [f"the scorer is used, but these captions are too few to say that it helps: {amount}"]
    return [f"the scorer does not help: {amount}; rank is {trial.best_rank}"]


def _table(trials: tuple[Trial, ...]) -> str:
    ranks = list(trials[0].fits)
    rows = [["temperature", "guidance", "top-k", *(f"{rank}" for rank in ranks), f"top-{TOP}", "captions"]]
    for trial in trials:
        sampling = trial.sampling
        rows.append(
            [
                f"{sampling.temperature:g}",
                f"{sampling.guidance:g}",
                f"{sampling.top_k or 'all'}",
                *(f"{trial.fit(rank):.2f}" for rank in ranks),
                f"{trial.recognised[trial.best_rank]:.2f}",
                str(len(trial.fits[ranks[0]])),
            ]
        )
    return aligned_table(rows, right=range(len(rows[0])))


def _trial_as_json(trial: Trial) -> dict[str, Any]:
    values = dataclasses.asdict(trial.sampling)
    return {
        **{name: values[name] for name in ("temperature", "guidance", "top_k", "top_p")},
        "candidates": trial.candidates,
        "captions": len(next(iter(trial.fits.values()))),
        "fit": {rank: round(trial.fit(rank), 4) for rank in trial.fits},
        "recognised": {rank: round(share, 4) for rank, share in trial.recognised.items()},
    }
