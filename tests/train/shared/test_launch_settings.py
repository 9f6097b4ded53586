import pytest

from dalle_mini_impl.train.shared.launch_settings import check_launch_settings, mixed_precision
from dalle_mini_impl.util.errors import UserError


@pytest.mark.parametrize(
    ("launched", "precision", "expected"),
    [
        (None, "auto", "bf16"),
        ("no", "auto", "bf16"),
        ("no", "fp32", "no"),
        ("no", "fp16", "fp16"),
        ("bf16", "auto", "bf16"),
        ("fp16", "auto", "fp16"),
        ("bf16", "bf16", "bf16"),
    ],
)
def test_the_launchers_precision_is_taken_over(monkeypatch, launched, precision, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert mixed_precision("run.precision", precision) == expected


@pytest.mark.parametrize(
    ("launched", "precision", "message"),
    [
        ("fp16", "fp32", "expected one precision, got mixed_precision fp16 from the launcher and run.precision fp32"),
        ("bf16", "fp16", "expected one precision, got mixed_precision bf16 from the launcher and run.precision fp16"),
        ("fp8", "auto", "expected mixed_precision no, bf16 or fp16 from the launcher, got fp8"),
        ("fp8", "bf16", "expected one precision"),
        ("no", "int8", "run.precision is 'int8'; expected auto, bf16, fp16, fp32"),
    ],
)
def test_precisions_that_contradict_or_are_unknown_are_refused(monkeypatch, launched, precision, message):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(UserError, match=message):
        mixed_precision("run.precision", precision)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "got DeepSpeed; use distributed_type FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "got Megatron-LM; use distributed_type FSDP"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "got a parallelism_config"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "got inductor; leave it out and set run.compile=true"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "steps 4 from the launcher; set run.accumulation=4"),
    ],
)
def test_what_is_not_done_here_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launch_settings(2)


@pytest.mark.parametrize("steps", ["auto", "2"])
def test_what_the_launcher_sets_by_default_is_accepted(monkeypatch, steps):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
    check_launch_settings(2)
