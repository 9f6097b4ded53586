import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.training import OptimizerConfig, RunConfig, TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train import estimate as plan
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.optimizers import build_optimizers
from dalle_mini_impl.util.errors import UserError

STREAM = StreamConfig(text_length=5, text_vocab=40, grid=(3, 4), image_vocab=30, bos_id=1)


def config(recompute=False, muon=0.02, ema=0.999):
    return TransformerRun(
        model=TransformerConfig(n_layer=3, n_head=2, n_embd=64),
        optimizer=OptimizerConfig(muon_learning_rate=muon),
        run=RunConfig(ema=ema),
        recompute=recompute,
    )


def real(run):
    """The model itself, after a training step, and its optimizers."""
    model = StreamLoss(build_transformer(run.model, STREAM), Stream(STREAM))
    optimizers = build_optimizers(model, run.optimizer)
    ids = Stream(STREAM).join(Stream(STREAM).prefix([[], [3]]), torch.zeros(2, 3, 4, dtype=torch.int64))
    sum(model(ids[:, :-1], ids[:, 1:])).backward()
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


@pytest.mark.parametrize("muon", [0.0, 0.02])
@pytest.mark.parametrize("ema", [0.0, 0.999])
def test_estimated_state_bytes_equal_those_of_training(muon, ema):
    run = config(muon=muon, ema=ema)
    model, optimizers = real(run)
    weights = sum(p.numel() for p in model.parameters())
    moments = sum(
        value.numel()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if value.ndim > 0
    )
    needs = plan.count(run, STREAM)
    assert needs.parameters == weights
    assert needs.states == 4 * (2 * weights + moments + (weights if ema else 0))
    assert needs.ids == 17


@pytest.mark.parametrize(("precision", "width"), [("bf16", 2), ("fp32", 4)])
def test_gathered_bytes_are_two_blocks_and_the_rest(precision, width):
    run = config()
    run = dataclasses.replace(run, run=dataclasses.replace(run.run, precision=precision))
    model, _ = real(run)
    block = sum(p.numel() for p in model.transformer.blocks[1].parameters())
    outside = (2 * (40 + 5 + 30) + 1) * 64
    assert plan.count(run, STREAM).gathered == 2 * width * (outside + 2 * block) + 4 * max(outside, block)


def test_estimated_activation_bytes_equal_those_of_a_real_pass():
    model, _ = real(config())
    assert plan.count(config(), STREAM).activations == plan._activations(model, Stream(STREAM))


def test_activations_with_width_equal_to_length_are_counted():
    layout = StreamConfig(text_length=4, text_vocab=40, grid=(6, 10), image_vocab=30, bos_id=1)  # 64 ids, as the width
    shorter = StreamConfig(text_length=4, text_vocab=40, grid=(3, 20), image_vocab=30, bos_id=1)
    other = StreamConfig(text_length=3, text_vocab=41, grid=(6, 10), image_vocab=30, bos_id=1)  # 63
    kept = [plan.count(config(), one).activations for one in (layout, shorter, other)]
    assert kept[0] == kept[1]
    assert kept[2] == pytest.approx(63 / 64 * kept[0], rel=0.01)


def test_recomputation_keeps_one_block_and_the_inputs_of_the_others():
    whole, again = plan.count(config(), STREAM), plan.count(config(recompute=True), STREAM)
    assert whole.activations / 3 < again.activations < 0.6 * whole.activations
    assert whole.flops < again.flops < 4 / 3 * whole.flops


def test_estimated_operations_equal_those_of_the_matrix_products():
    matrices = 3 * (3 * 64 * 64 + 64 * 64 + 2 * 64 * 192 + 192 * 64)
    head = 5 * 64 * (40 + 5) + 12 * 64 * 30
    attention = 3 * 2 * 17 * 17 * 64  # of two products, half of the pairs
    assert plan.count(config(), STREAM).flops == 3 * (2 * (17 * matrices + head) + attention)


def test_sharded_states_take_less_memory_per_gpu():
    needs = plan.Needs(1000, in_blocks=900, gathered=800, ids=17, states=8000, activations=50, flops=1e6)
    whole, shared = plan.plans(needs, plan.TrainingMachine(gpus=4, memory=10_000, flops=1e3), pictures=86400)
    assert (whole.states, shared.states) == (8000, 2000 + 800)
    assert (whole.pictures_at_once, shared.pictures_at_once) == (1000 // 50, 6200 // 50)
    assert whole.days == shared.days == 1e6 / 4e3
    (alone,) = plan.plans(needs, plan.TrainingMachine(gpus=1, memory=5000, flops=1e3), pictures=1)
    assert (alone.sharded, alone.pictures_at_once) == (False, 0)


@pytest.mark.parametrize(("name", "weights"), [("300m", 0.35e9), ("1.3b", 1.3e9), ("dalle1/12b", 12e9)])
def test_the_large_configs_are_of_their_size(name, weights):
    result = CliRunner().invoke(dalle, ["plan", f"configs/{name}.yaml", "--json", "-"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["needs"]["parameters"] == pytest.approx(weights, rel=0.03)
    assert len(facts["plans"]) == 2
    assert load(TransformerRun, f"configs/{name}.yaml", []).run.batch_size >= 1024


@pytest.mark.parametrize(("name", "gpus"), [("300m", 8), ("1.3b", 8)])
def test_the_large_configs_are_what_the_plan_proposes(name, gpus):
    arguments = ["plan", f"configs/{name}.yaml", "--gpus", str(gpus), "--json", "-"]
    proposal = json.loads(CliRunner().invoke(dalle, arguments, catch_exceptions=False).stdout)["proposal"]
    run = load(TransformerRun, f"configs/{name}.yaml", [])
    assert (run.recompute, run.run.accumulation) == (proposal["recompute"], proposal["accumulation"])
    assert run.run.batch_size == gpus * proposal["accumulation"] * proposal["pictures"]
    assert f"{gpus} GPUs of 80 GB" in Path(f"configs/{name}.yaml").read_text()


def needs(states, activations, flops, gathered=0):
    return plan.Needs(
        1000, in_blocks=900, gathered=gathered, ids=1024, states=states, activations=activations, flops=flops
    )


@pytest.mark.parametrize(
    ("states", "activations", "expected"),
    [
        (8000, (10, 1), plan.Proposal(False, False, 1, 64, 0)),  # all fits
        (8000, (100, 1), plan.Proposal(False, False, 8, 8, 0)),  # 10 fit, of which 8 divide the batch
        (8000, (300, 20), plan.Proposal(True, False, 4, 16, 0)),  # 3 are too small a pass; without a full copy more fit
        (8000, (900, 20), plan.Proposal(False, True, 2, 32, 0)),  # then still too few
        (16000, (200, 150), plan.Proposal(True, False, 4, 16, 0)),  # a full copy does not fit
        (16000, (4900, 4500), plan.Proposal(True, False, 64, 1, 0)),  # nothing better fits
        (80000, (200, 150), None),
    ],
)
def test_the_proposal_is_the_fastest_way_that_fits(states, activations, expected):
    both = tuple(needs(states, size, flops) for size, flops in zip(activations, (3.0, 4.0), strict=True))
    found = plan.propose(both, plan.TrainingMachine(gpus=4, memory=10_000, flops=1e3), 256, pictures=1.0)
    assert (found and dataclasses.replace(found, days=0)) == expected
    if found:
        assert found.days == (4.0 if found.recompute else 3.0) / 4e3 / 86400


def test_a_batch_that_the_gpus_cannot_share_is_estimated_without_a_proposal(tmp_path):
    facts = tmp_path / "plan.json"
    arguments = ["plan", "configs/300m.yaml", "--gpus", "7", "--json", str(facts)]
    result = CliRunner().invoke(dalle, arguments, catch_exceptions=False)
    assert result.stdout.splitlines()[-1] == "proposed: a run.batch_size that 7 GPUs can share, not 1024"
    assert "7 GPUs, a full copy on each (DDP)" in result.stdout
    assert json.loads(facts.read_text())["proposal"] is None


def test_the_command_prints_the_estimate():
    result = CliRunner().invoke(dalle, ["plan", "configs/dalle1/12b.yaml", "--gpus", "8"], catch_exceptions=False)
    assert (
        "proposed for run.batch_size=1024: run.accumulation=4 recompute=true, sharded (FSDP): 32 pictures at once"
        in (result.output)
    )
    assert "12,295 M weights (12,095 M in the blocks), 1280 ids per picture" in result.output
    assert "8 GPUs, a full copy on each (DDP): 246 GB of 80, does not fit" in result.output
    assert "8 GPUs, sharded (FSDP)" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures", "0"], "and 0; change the one that is not"),
        (["--pictures", "1e300"], "above 0 and at most 1e+30, got 8, 8e+10, 4e+14 and 1e+300; change the one"),
        (["--grid", "2000000000"], "expected sizes whose tensors have at most 1e+17 numbers, got one of 3e+38"),
        (["text_length=1000000000"], "expected text_length of at least 1 and at most 65536, got 1000000000"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments, message):
    result = CliRunner().invoke(dalle, ["plan", "configs/300m.yaml", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


@pytest.mark.parametrize("option", ["--gpus", "--grid", "--codebook", "--text-vocab"])
@pytest.mark.parametrize("value", ["0", "-1", "1000000000000000000"])
def test_numbers_of_things_out_of_range_are_refused(option, value):
    result = CliRunner().invoke(dalle, ["plan", "configs/300m.yaml", option, value])
    assert result.exit_code == 2
    assert f"invalid value for '{option}'" in result.output.lower()
