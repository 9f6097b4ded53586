"""Drift of lower precisions from fp32."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.evaluate import precision
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.sampling.native.library import load


@pytest.mark.skipif(load() is None, reason="there is no C compiler with OpenMP")
def test_int8_drifts_further_than_bf16():
    fp32, bf16, int8 = precision.measure_drift(
        "emoji", ("bf16", "int8"), precision.PROMPTS, candidates=8, seed=0, device="cpu"
    )
    assert (fp32.nats, fp32.agreement, fp32.same_ids) == (0, 1, 1)
    assert 0 < bf16.nats < int8.nats < 0.1
    assert 1 >= bf16.agreement >= int8.agreement > 0.9
    assert 1 >= bf16.same_ids >= int8.same_ids > 0
    assert all(drift.seconds > 0 for drift in (fp32, bf16, int8))


def test_drift_between_known_distributions(tiny_dalle, monkeypatch):
    peaked = torch.zeros(61)
    peaked[7] = math.log(61)  # 61 of 121 parts of the probability, each other id one
    logits = iter([peaked, torch.zeros(61)])
    monkeypatch.setattr(precision, "image_logits", lambda *arguments: next(logits).expand(len(arguments[-1]), 15, 61))
    monkeypatch.setattr(DalleMini, "from_pretrained", lambda *arguments: tiny_dalle)
    _, drift = precision.measure_drift("any", ("bf16",), ("a cat",), candidates=2, seed=0, device="cpu")
    assert drift.nats == pytest.approx(61 / 121 * math.log(61 * 61 / 121) + 60 / 121 * math.log(61 / 121), rel=1e-5)
    assert (drift.agreement, drift.same_ids) == (0, 1)


def test_command_prints_and_writes_the_drift(tiny_model, tmp_path):
    path = tmp_path / "drift.json"
    arguments = ["evaluate", "precision", str(tiny_model), "a cat", "a hat", "--candidates", "2"]
    result = CliRunner().invoke(
        dalle, [*arguments, "--precisions", "fp32", "--json", str(path), "--device", "cpu"], catch_exceptions=False
    )
    assert result.output.splitlines()[-2].split()[:4] == ["fp32", "0.00000", "100.0%", "100.0%"]
    assert [drift["nats"] for drift in json.loads(path.read_text())["drift"]] == [0, 0]


@pytest.mark.parametrize("words", ["", "fp16"])
def test_unknown_precisions_are_refused_before_a_model_is_loaded(words):
    result = CliRunner().invoke(dalle, ["evaluate", "precision", "absent", "--precisions", words])
    assert result.exit_code == 2
    assert "Invalid value for '--precisions'" in result.output
