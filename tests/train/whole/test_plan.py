import dataclasses

import pytest

from dalle_mini_impl.config.presets import PresetConfig, PresetTable, SharesConfig
from dalle_mini_impl.config.training import EncodeRun, OptimizerConfig, RunConfig, ScorerRun, TransformerRun
from dalle_mini_impl.train.whole import plan
from dalle_mini_impl.train.whole.measure import Speed

SHARES = SharesConfig(image_tokenizer=4, encode=1, transformer=3, scorer=1, report=1)
PRESET = PresetConfig(name="one", shares=SHARES, least_steps=50)
TABLE = PresetTable(presets=(PRESET,), validations=4, sheets=2, watching=0.1)
SPEED = Speed(step=0.1, validation=1.0, rest=3.0)
NOTHING: frozenset[str] = frozenset()


def test_what_is_left_is_divided_among_the_parts_to_come():
    assert plan.budget(PRESET, "image_tokenizer", 100, 100) == pytest.approx(40)
    assert plan.budget(PRESET, "transformer", 100, 100) == pytest.approx(60)
    assert plan.budget(PRESET, "report", 100, 100) == 100


def test_a_late_stage_leaves_half_of_their_shares_to_those_after_it():
    assert plan.budget(PRESET, "scorer", -3, 100) == pytest.approx(5)
    assert plan.budget(PRESET, "report", 4, 100) == pytest.approx(5)
    assert plan.budget(PRESET, "report", 6, 100) == pytest.approx(6)


def test_steps_fill_the_time_beside_validations_and_sheets():
    config = plan.with_steps(TransformerRun(), 60, SPEED, TABLE, NOTHING)
    assert config.run.steps == (60 - 4 * 1 - 2 * 3) / 0.1
    assert plan.expected_seconds(config, SPEED) == pytest.approx(60)
    assert (config.run.validate_every, config.run.sample_every) == (125, 250)
    assert config.run.save_every == 300  # half a minute
    assert config.run.log_every == 2
    assert config.optimizer.warmup_steps == 50
    long = plan.with_steps(TransformerRun(), 6000, SPEED, TABLE, NOTHING)
    assert long.run.save_every == 3000  # a twentieth
    assert long.run.log_every == 20
    assert long.optimizer.warmup_steps == OptimizerConfig().warmup_steps


def test_watching_takes_a_small_share_of_the_time():
    config = plan.with_steps(TransformerRun(), 25, SPEED, TABLE, NOTHING)  # a tenth are two validations, and no sheet
    assert config.run.steps == (25 - 2 * 1 - 1 * 3) / 0.1
    assert (config.run.validate_every, config.run.sample_every) == (100, 200)
    scorer = plan.with_steps(ScorerRun(), 60, SPEED, TABLE, NOTHING)  # draws no sheets
    assert scorer.run.steps == (60 - 4 * 1 - 3) / 0.1
    assert plan.expected_seconds(scorer, SPEED) == pytest.approx(60)


def test_there_are_always_some_steps():
    config = plan.with_steps(ScorerRun(run=RunConfig(sample_every=0)), 0.1, SPEED, TABLE, NOTHING)
    assert config.run.steps == plan.LEAST_STEPS
    assert config.run.sample_every == 0
    assert config.run.save_every == plan.LEAST_STEPS
    assert config.optimizer.warmup_steps == 0


def test_settings_of_the_user_stay():
    given = TransformerRun(run=RunConfig(steps=7, save_every=3, log_every=5), optimizer=OptimizerConfig(warmup_steps=6))
    fixed = frozenset({"run.steps", "run.save_every", "run.log_every", "optimizer.warmup_steps"})
    config = plan.with_steps(given, 60, SPEED, TABLE, fixed)
    assert dataclasses.replace(config.run, validate_every=500, sample_every=1000) == given.run
    assert config.optimizer == given.optimizer


def test_variants_fill_the_time():
    config = EncodeRun(variants=16)
    assert plan.fitting_variants(config, 100, 10, 3.1, 0.01) == 3
    assert plan.fitting_variants(config, 100, 10, 1000, 0.01) == 16
    assert plan.fitting_variants(config, 100_000, 10, 3, 0.01) == 1
    assert plan.fitting_variants(EncodeRun(variants=0), 100, 10, 3, 0.01) == 0
    assert plan.fitting_variants(EncodeRun(variants=9, first_unchanged=True), 100_000, 10, 3, 0.01) == 2


def test_a_preset_is_too_slow_if_a_stage_has_too_few_steps():
    planned = {"image_tokenizer": plan.PlannedStage(9, 50), "transformer": plan.PlannedStage(9, 49)}
    free = dict.fromkeys(("image_tokenizer", "transformer", "scorer"), NOTHING)
    assert plan.too_slow(PRESET, planned, free) == "transformer"
    assert plan.too_slow(PRESET, planned, {**free, "transformer": frozenset({"run.steps"})}) == ""


def test_the_plan_is_a_table():
    lines = plan.plan_text(
        {"encode": plan.PlannedStage(3.2), "scorer": plan.PlannedStage(80, 1234, SPEED)}
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["steps", "per", "step", "time"],
        ["3", "encode", "3.2", "s"],
        ["5", "scorer", "1,234", "100", "ms", "1.3", "min"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"), (0.95, "0.9 s"), (3.21, "3.2 s"), (42, "42 s"), (90, "1.5 min"), (3599, "1 h 00 min"),
        (28_000, "7 h 47 min"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert plan.duration(seconds) == text
