"""How many steps of each stage fit into the time, and what is planned, as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dalle_mini_impl.config.presets import PresetConfig, PresetTable
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.train.whole.measure import Speed
from dalle_mini_impl.train.whole.settings import TRAINED
from dalle_mini_impl.util.tables import aligned_table

LEAST_STEPS = 4
"""Steps of a stage, however little time there is."""
LEAST_OF_SHARE = 0.5
"""Part of its share of the whole time that each part gets at least, however little time is left."""
LEAST_SAVING = 30.0
"""Seconds between two resumable states, at the least."""
WARM_UP_SHARE = 0.1
"""Largest share of the steps in which the learning rate rises."""
LOG_LINES = 200
"""Lines of a stage's log, about."""
LONGEST_LOG_INTERVAL = 20
"""Steps between lines of the log, at the most."""
STAGE_NAMES = {
    "image_tokenizer": "2 image tokenizer",
    "encode": "3 encode",
    "transformer": "4 transformer",
    "scorer": "5 scorer",
    "prior": "6 prior",
    "report": "samples and report",
}
"""Parts of the time, in the order of the stages' numbers."""
ORDER = ("image_tokenizer", "encode", "transformer", "scorer", "report")
"""The order in which they are done."""
EMBEDDING_ORDER = ("image_tokenizer", "scorer", "encode", "transformer", "report")
"""The order where the transformer learns from the scorer's image embeddings, which are stored with the ids."""
PRIOR_ORDER = (*EMBEDDING_ORDER[:-1], "prior", "report")
"""The order where a prior is trained as well, which draws such embeddings."""


@dataclass(frozen=True)
class PlannedStage:
    """What a stage will do."""

    seconds: float
    """Time it will take."""
    steps: int = 0
    """Optimizer steps; 0 for stages without."""
    speed: Speed | None = None
    """How fast it was measured to be."""


def budget(preset: PresetConfig, part: str, left: float, total: float, order: Sequence[str] = ORDER) -> float:
    """Seconds for one part of the time, if it and all after it divide what is left.

    A stage that took longer than planned, because other programs became busy, does not leave nothing to those after
    it: a scorer of a few steps would be worse than none. The whole then takes longer than asked for.

    Args:
        preset: whose shares count.
        part: one of `STAGE_NAMES`.
        left: seconds.
        total: seconds that were asked for.
        order: all parts, in the order in which they are done.
    """
    shares = [getattr(preset.shares, name) for name in order]
    here = order.index(part)
    return max(left * shares[here] / sum(shares[here:]), LEAST_OF_SHARE * total * shares[here] / sum(shares))


def with_steps(config: Any, seconds: float, speed: Speed, table: PresetTable, fixed: frozenset[str]) -> Any:
    """A stage's config with as many steps as fit into its time, and with what follows from them.

    Args:
        config: the stage's settings.
        seconds: for everything that the stage does.
        speed: how long that takes.
        table: says how often it validates, samples and saves.
        fixed: settings that the user gave, which stay.
    """
    validations = most_times(table.validations, speed.validation, seconds, table)
    sheets = most_times(table.sheets, speed.rest, seconds, table)
    other = validations * speed.validation + (sheets if draws_sheets(config) else 1) * speed.rest
    steps = config.run.steps
    if "run.steps" not in fixed:
        steps = max(LEAST_STEPS, int((seconds - other) / max(speed.step, 1e-6)))
    save_seconds = max(LEAST_SAVING, table.saving * seconds)
    run = {
        "steps": steps,
        "validate_every": math.ceil(steps / validations),
        "sample_every": math.ceil(steps / sheets) if config.run.sample_every else 0,
        "save_every": max(1, min(steps, int(save_seconds / max(speed.step, 1e-6)))),
        "log_every": max(1, min(LONGEST_LOG_INTERVAL, steps // LOG_LINES)),
    }
    run = {name: value for name, value in run.items() if f"run.{name}" not in fixed}
    optimizer = config.optimizer
    if "optimizer.warmup_steps" not in fixed:
        optimizer = replace(optimizer, warmup_steps=min(optimizer.warmup_steps, int(WARM_UP_SHARE * steps)))
    return replace(config, run=replace(config.run, **run), optimizer=optimizer)


def most_times(wanted: int, each: float, seconds: float, table: PresetTable) -> int:
    """How often something can be done in a stage without taking too large a share of its time; at least once."""
    return max(1, min(wanted, int(table.watching * seconds / max(each, 1e-6))))


def draws_sheets(config: Any) -> bool:
    """Whether sheets of samples take a stage time of their own: those of the image tokenizer are part of validation."""
    return isinstance(config, TransformerRun) and config.run.sample_every > 0


def expected_seconds(config: Any, speed: Speed) -> float:
    """Time that a stage takes with these settings."""
    run = config.run
    validations = math.ceil(run.steps / run.validate_every) if run.validate_every else 0
    sheets = math.ceil(run.steps / run.sample_every) if draws_sheets(config) else 1
    return run.steps * speed.step + validations * speed.validation + sheets * speed.rest


def fitting_variants(config: Any, pictures: int, held_out: int, seconds: float, each: float) -> int:
    """Variants of each training picture that can be encoded in some seconds, at most the config's.

    At least one, or with `first_unchanged` two.

    Args:
        config: settings of the encode stage.
        pictures: number of training pictures.
        held_out: number of held-out pictures, each of which is encoded once.
        seconds: for all.
        each: seconds for one variant of one picture.
    """
    fitting = int((seconds - held_out * each) / max(pictures * each, 1e-9))
    return max(1 + config.first_unchanged, min(config.variants, fitting)) if config.variants else 0


def too_slow(preset: PresetConfig, planned: Mapping[str, PlannedStage], fixed: Mapping[str, frozenset[str]]) -> str:
    """The stage of which fewer steps fit than the preset needs; empty if there is none."""
    for stage in TRAINED:
        if stage in planned and "run.steps" not in fixed[stage] and planned[stage].steps < preset.least_steps:
            return stage
    return ""


def plan_text(planned: Mapping[str, PlannedStage]) -> str:
    """The plan as a table."""
    rows = [("", "steps", "per step", "time")]
    for part, stage in planned.items():
        steps = f"{stage.steps:,}" if stage.steps else ""
        step = duration(stage.speed.step) if stage.speed else ""
        rows.append((STAGE_NAMES[part], steps, step, duration(stage.seconds)))
    return aligned_table(rows, right=(1, 2, 3))


def duration(seconds: float) -> str:
    """A duration in words, such as `1 h 05 min`, `6.2 min`, `12 s` or `85 ms`."""
    if seconds >= 3570:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds >= 59.5:
        return f"{seconds / 60:.1f} min"
    if seconds >= 9.5:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{1000 * seconds:.0f} ms"
