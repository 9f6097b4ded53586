"""A transformer shared out among processes is trained as a whole one is.

Most tests share it out to a single process, this one. Of those that start processes only one runs by default.
"""

import argparse
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers.training import (
    ADAMW,
    DEADLINE,
    RECORD_RANKS,
    Killed,
    interrupt,
    launch,
    launch_machines,
    launch_two,
    outcome,
    run_sharded,
    states,
)
from torch import nn
from torch.distributed import checkpoint

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.train.shared import fsdp, sharded_state
from dalle_mini_impl.train.shared import loop as common
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.run_record import RunRecord
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.util.errors import UserError

FEW = ("run.steps=6", "run.validate_every=3", "run.save_every=6", "run.sample_every=0")
FOR_TRANSFORMERS = (
    "the launcher's file requests FSDP, which only the transformer stage supports; this stage's model is small "
    "enough for every process: use distributed_type MULTI_GPU"
)


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """A run that was shared out, with its state. Tests that change anything copy it."""
    home = trained.copy(tmp_path_factory.mktemp("finished") / "home", "transformer")
    run_sharded(home.run, "transformer")
    return home


def compare(one, two, closeness=1e-5):
    """Every logged figure agrees, the gradient's norm among them."""
    assert len(one.log("transformer")) == 8
    for line, expected in zip(two.log("transformer"), one.log("transformer"), strict=True):
        assert line == pytest.approx(expected, rel=closeness)


def compare_parts(one, two):
    """What was saved differs by what storing it rounds at most."""
    found, expected = (read_part(home.folder / "model", "transformer").tensors for home in (two, one))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2**-7, atol=1e-5)


# --- two processes


def test_two_sharded_processes_match_one_process(trained, tmp_path):
    settings = (*FEW, *ADAMW, "model.position=learned")
    one, two = (trained.copy(tmp_path / name, "transformer") for name in ("one", "two"))
    one.run("transformer", *settings)
    launch_two(
        RECORD_RANKS,
        str(two.folder),
        "-1",
        "transformer",
        *two.arguments("transformer", *settings),
        launcher="gpus-8-fsdp",
    )
    compare(one, two)
    compare_parts(one, two)
    weights = read_part(one.folder / "model", "transformer").tensors.values()
    for rank in (0, 1):
        share = sum(weight.chunk(2)[rank].numel() for weight in weights)
        held = torch.load(two.folder / f"{rank}-5.pt")
        assert held == {"weights": share, "gradients": share, "moments": 2 * share, "ema": share}
    assert states(two) == ["state-00000006"]
    written = (two.folder / "transformer" / "state-00000006").glob("*.distcp")
    assert {path.name.split("_")[2] for path in written} == {"0", "1"}


@pytest.mark.slow
def test_accumulation_and_recomputation_work_with_sharding(trained, tmp_path):
    settings = (*FEW, *ADAMW, "run.accumulation=3", "recompute=true")
    one, two = (trained.copy(tmp_path / name, "transformer") for name in ("one", "two"))
    one.run("transformer", *settings)
    launch_two(
        "-m", "dalle_mini_impl.train.transformer", *two.arguments("transformer", *settings), launcher="gpus-8-fsdp"
    )
    compare(one, two)
    compare_parts(one, two)


@pytest.mark.slow
def test_two_machines_with_copies_of_the_shards_match_one_process(trained, tmp_path):
    settings = (*FEW, *ADAMW, "model.position=learned", "run.accumulation=3")
    one, four = (trained.copy(tmp_path / name, "transformer") for name in ("one", "four"))
    one.run("transformer", *settings)
    arguments = four.arguments("transformer", *settings)
    launch_machines("gpus-nodes-fsdp", 2, 2, RECORD_RANKS, str(four.folder), "-1", "transformer", *arguments)
    compare(one, four)
    compare_parts(one, four)
    weights = read_part(one.folder / "model", "transformer").tensors.values()
    for rank in range(4):
        share = sum(weight.chunk(2)[rank % 2].numel() for weight in weights)
        held = torch.load(four.folder / f"{rank}-5.pt")
        assert held == {"weights": share, "gradients": share, "moments": 2 * share, "ema": share}
    alone = four.copy(tmp_path / "alone")
    run_sharded(alone.run, "transformer", *settings, "--resume", "run.steps=8")
    assert states(alone)[-1] == "state-00000008"


@pytest.mark.slow
def test_compiled_blocks_of_a_sharded_model_compute_the_same(trained, tmp_path):
    settings = (*FEW, *ADAMW, "model.n_layer=1")
    whole, shared = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "shared"))
    whole.run("transformer", *settings)
    run_sharded(shared.run, "transformer", *settings, "run.compile=true")
    compare(whole, shared)
    compare_parts(whole, shared)


@pytest.mark.slow
def test_sharded_weights_stay_float32_under_bf16(trained, tmp_path):
    settings = (*FEW, *ADAMW, "run.precision=bf16")
    one, two = (trained.copy(tmp_path / name, "transformer") for name in ("one", "two"))
    one.run("transformer", *settings)
    launch_two(
        "-m", "dalle_mini_impl.train.transformer", *two.arguments("transformer", *settings), launcher="gpus-8-fsdp"
    )
    compare(one, two, closeness=2**-8)
    saved = checkpoint.FileSystemReader(two.folder / "transformer" / "state-00000006").read_metadata()
    kinds = {entry.properties.dtype for name, entry in saved.state_dict_metadata.items() if "own." not in name}
    assert kinds == {torch.float32}


@pytest.mark.slow
def test_sharded_state_resumes_bit_for_bit_in_two_processes_and_in_one(trained, tmp_path):
    whole, broken, alone = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "broken", "alone"))

    def run(home, stop, *extra):
        launch_two(
            RECORD_RANKS,
            str(home.folder),
            str(stop),
            "transformer",
            *home.arguments("transformer", *extra),
            launcher="gpus-8-fsdp",
        )

    run(whole, -1)
    run(broken, 6)
    assert broken.log("transformer")[-1]["step"] == 5
    assert states(broken) == ["state-00000004"]
    alone = broken.copy(tmp_path / "one")
    run(broken, -1, "--resume")
    assert outcome(broken, "transformer") == outcome(whole, "transformer")
    run_sharded(alone.run, "transformer", "--resume")
    for line, expected in zip(alone.log("transformer"), whole.log("transformer"), strict=True):
        assert line == pytest.approx(expected, rel=1e-2)  # Muon magnifies rounding


@pytest.mark.slow
def test_a_launch_that_cannot_work_ends_with_one_line(trained):
    code, output = launch("gpus-8-fsdp", 2, "-m", "dalle_mini_impl.train.scorer", *trained.arguments("scorer"))
    assert code != 0
    assert output == f"error: {FOR_TRANSFORMERS}\n"


# --- one process


def test_sharding_over_one_process_changes_nothing(trained, finished):
    assert outcome(finished, "transformer") == outcome(trained, "transformer")
    samples = [home.folder / "transformer" / "samples-000010.png" for home in (finished, trained)]
    assert samples[0].read_bytes() == samples[1].read_bytes()
    assert states(finished) == ["state-00000008", "state-00000010"]


@pytest.mark.parametrize("reversible", ["false", "true"])
def test_blocks_of_imported_models_can_be_sharded(trained, tmp_path, reversible):
    settings = (*FEW, "model.n_layer=3", "model.position=learned", "model.attention_masks=[row,column]",
                "model.mask_kernel=3", "model.last_attention_mask=conv", "model.block.norm=layer",
                "model.block.mlp=geglu", "model.block.bias=true",
                "model.block.sandwich=true", "model.block.token_shift=true", "model.divide_by_max=true",
                f"model.block.reversible={reversible}")  # fmt: skip
    whole, shared = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "shared"))
    whole.run("transformer", *settings)
    run_sharded(shared.run, "transformer", *settings)
    assert outcome(shared, "transformer") == outcome(whole, "transformer")


@pytest.mark.parametrize("step", [7, 9])
def test_resumes_bit_for_bit(trained, home, monkeypatch, step):
    (home.folder / "model" / "transformer.safetensors").unlink()
    run_sharded(interrupt, home, "transformer", step, monkeypatch)
    assert states(home)[-1] == f"state-{step // 4 * 4:08d}"
    run_sharded(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    assert states(home) == ["state-00000008", "state-00000010"]


def test_a_kill_while_writing_leaves_the_state_before(trained, home):
    save = checkpoint.async_save

    def deadly(shares, checkpoint_id, process_group):
        if states(home):
            checkpoint_id.mkdir()
            (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
            raise Killed
        return save(shares, checkpoint_id=checkpoint_id, process_group=process_group)

    with mock.patch.object(checkpoint, "async_save", deadly), pytest.raises(Killed):
        run_sharded(home.run, "transformer")
    assert states(home) == ["state-00000004"]
    run_sharded(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    assert not (home.folder / "transformer" / ".state.partial").exists()


def test_a_state_is_written_while_the_training_goes_on(trained, home):
    trained_on = threading.Event()
    update, digest = Ema.update, sharded_state.file_digest

    def tell(ema, model, step):
        update(ema, model, step)
        if step == 6:  # of ten; a state is due after steps 4, 8 and 10
            trained_on.set()

    def digest_later(path):
        assert trained_on.wait(DEADLINE)
        return digest(path)

    with mock.patch.object(Ema, "update", tell), mock.patch.object(sharded_state, "file_digest", digest_later):
        run_sharded(interrupt_after_writing, home)
    # What was written is the state after step 4, not that of the weights while it was written.
    assert states(home) == ["state-00000004"]
    run_sharded(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


def interrupt_after_writing(home):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(home, "transformer", 7, patch)


def test_a_training_that_fails_ends_its_state_first(home):
    begun = threading.Event()
    digest, check = sharded_state.file_digest, common.TrainingLog.check_finite

    def digest_late(path):
        assert begun.wait(DEADLINE)
        return digest(path)

    def diverge(log, step, **values):
        if step < 5:
            return check(log, step, **values)
        begun.set()
        raise UserError("the training has diverged")

    with (
        mock.patch.object(sharded_state, "file_digest", digest_late),
        mock.patch.object(common.TrainingLog, "check_finite", diverge),
        pytest.raises(UserError, match="the training has diverged"),
    ):
        run_sharded(home.run, "transformer")
    assert states(home) == ["state-00000004"]


@pytest.mark.parametrize(
    ("owner", "call", "path", "left"),
    [
        (Path, "rename", ".state.partial", ["state-00000004"]),
        (shutil, "rmtree", "state-00000004", ["state-00000004", "state-00000008", "state-00000010"]),
    ],
)
def test_a_kill_between_two_states_leaves_one(trained, home, owner, call, path, left):
    function = getattr(owner, call)

    def deadly(this, *rest, **options):
        if this.name == path and states(home):
            raise Killed
        return function(this, *rest, **options)

    with mock.patch.object(owner, call, deadly), pytest.raises(Killed):
        run_sharded(home.run, "transformer")
    assert states(home) == left
    run_sharded(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    assert states(home)[-1] == "state-00000010"


def test_hybrid_sharding_changes_nothing(trained, home, monkeypatch):
    monkeypatch.setenv("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD")
    (home.folder / "model" / "transformer.safetensors").unlink()
    run_sharded(interrupt, home, "transformer", 9, monkeypatch)
    monkeypatch.setenv("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD")
    run_sharded(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


def test_hybrid_sharding_of_unequal_machines_is_refused(monkeypatch):
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_SHARDING_STRATEGY", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert fsdp.shard_count(6) == 2
    process = SimpleNamespace(num_processes=5, device=torch.device("cpu"), mixed_precision="no")
    with pytest.raises(
        UserError, match=r"expected equally many processes on each machine .* got 5 in all and 2 on this"
    ):
        fsdp.wrap_model(process, nn.Linear(2, 3), [])
    monkeypatch.setenv("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    assert fsdp.shard_count(6) == 6
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert fsdp.shard_count(6) == 1


def test_a_new_run_sets_the_states_of_an_earlier_one_aside(finished, tmp_path):
    home = finished.copy(tmp_path / "home")
    run_sharded(home.run, "transformer", "run.save_every=0", "run.steps=2")
    assert states(home) == []
    earlier = home.folder / "transformer" / "earlier"
    assert sorted(path.name for path in earlier.iterdir()) == [
        "config.yaml", "log.jsonl", "state-00000008", "state-00000010",
    ]  # fmt: skip


def test_each_process_restores_its_own_tensors(tmp_path):
    run, counts = RunConfig(state_dir=str(tmp_path)), torch.arange(5)

    def there_and_back():
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator, model = common.make_accelerator(), nn.Linear(2, 3)
        assert fsdp.wrap_model(accelerator, model, []) is model
        average = Ema(model, 0.9)
        torch.manual_seed(7)
        save_state(accelerator, run, 3, model, [], average, RunRecord(), counts=counts)
        expected = torch.rand(3)
        for process in (0, 1):  # with more processes than before, the numbers are dealt out again
            one = SimpleNamespace(
                process_index=process,
                num_processes=1,
                is_main_process=True,
                device=accelerator.device,
                scaler=None,
                unwrap_model=lambda model: model,
            )
            found = torch.zeros(5, dtype=torch.int64)
            assert load_state(one, run, model, [], average, RunRecord(), counts=found) == 4
            assert torch.equal(found, counts)
            assert torch.equal(torch.rand(3), expected)

    run_sharded(there_and_back)


# --- what cannot be resumed


def test_resuming_without_a_state_is_refused(home):
    with pytest.raises(
        UserError, match=r"expected state.pt or .* in .*/transformer for --resume, got neither; start without"
    ):
        run_sharded(home.run, "transformer", "--resume")


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        (
            "model.n_embd=24",
            r"expected the settings with which \S+ was started, got model.n_embd 16 -> 24; change them",
        ),
        ("model.n_layer=1", r"expected the settings with which \S+ was started, got model.n_layer 2 -> 1; change them"),
        (
            "optimizer.muon_learning_rate=0",
            r"of another model or optimizer \(\S+attention\.out\.weight\.exp_avg is nothing, expected \[16, 16\]\)",
        ),
    ],
)
def test_resuming_with_another_config_is_refused(finished, override, difference):
    before = finished.log("transformer")
    with pytest.raises(UserError, match=difference):
        run_sharded(finished.run, "transformer", "--resume", override)
    assert finished.log("transformer") == before


@pytest.mark.parametrize(("name", "length"), [(".metadata", 0), (".metadata", 900), ("__0_0.distcp", 20_000)])
def test_a_damaged_state_is_passed_over(trained, finished, tmp_path, name, length):
    home = finished.copy(tmp_path / "home")
    path = home.folder / "transformer" / "state-00000010" / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match=rf"state-00000010 is damaged \(wrong checksum of {name}\); going on from"):
        run_sharded(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    for state in (home.folder / "transformer").glob("state-*"):
        (state / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"state-00000010 is damaged .*state-00000008 is damaged .*; start without"):
        run_sharded(home.run, "transformer", "--resume")


def test_a_state_that_cannot_be_written_ends_the_run_with_one_line(home):
    (home.folder / "transformer").mkdir()
    (home.folder / "transformer" / ".state.partial").touch()
    with pytest.raises(
        UserError, match=r"cannot write .*/state-00000004: .*exist.*; make space, or choose a writable path$"
    ):
        run_sharded(home.run, "transformer")


# --- launches that are not known here


@pytest.mark.parametrize("stage", ["image_tokenizer", "scorer"])
def test_stages_with_small_models_refuse_sharding(trained, monkeypatch, stage):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=FOR_TRANSFORMERS):
        trained.run(stage)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FSDP_VERSION", "1", "expected 2; see configs/accelerate/gpus-8-fsdp.yaml"),
        ("FSDP_OFFLOAD_PARAMS", "true", "expected false; see"),
        ("FSDP_RESHARD_AFTER_FORWARD", "SHARD_GRAD_OP", "expected true or false; see"),
        ("FSDP_SHARDING_STRATEGY", "NO_SHARD", "expected FULL_SHARD or 1 or HYBRID_SHARD or 4; set fsdp_reshard_after"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "expected false; set recompute=true instead"),
        ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "true", "expected false; set recompute=true instead"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "expected TRANSFORMER_BASED_WRAP; see"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "BertLayer", "expected Block or ForeignBlock; see"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT", "expected SHARDED_STATE_DICT; see"),
        ("FSDP_FORWARD_PREFETCH", "true", "expected false; see"),
        ("FSDP_IGNORED_MODULES", "head", "leave it out; see"),
    ],
)
def test_unsupported_fsdp_options_are_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    assert not fsdp.fsdp_requested()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=f"{name.lower()} is {value} in the launcher's file; {message}"):
        fsdp.fsdp_requested()


def test_what_the_launcher_sets_for_fsdp_by_default_is_accepted(monkeypatch):
    given = {"use_fsdp": True, "fsdp_version": "2", "mixed_precision": "no", "dynamo_backend": "no"}
    numbers = {"num_processes": 2, "num_machines": 1, "main_process_port": 0}
    arguments = argparse.Namespace(**{**vars(launch_command_parser().parse_args(["x"])), **given, **numbers})
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    assert fsdp.fsdp_requested()


# --- Muon

MUON = """
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dalle_mini_impl.train.shared import loop as common
from dalle_mini_impl.train.shared.muon import Muon, orthogonalise
from dalle_mini_impl.util.command_line import leave_process_group

accelerator = common.make_accelerator()


def check():
    mesh = init_device_mesh("cpu", (2,))
    for shape in ((37, 29), (29, 37)):
        gradient = torch.randn(shape, generator=common.generator_for(*shape))
        updates = []
        for share in (lambda x: x, lambda x: distribute_tensor(x, mesh, [Shard(0)])):
            weight = nn.Parameter(share(torch.zeros(shape)))
            weight.grad = share(gradient.clone())
            Muon([weight], lr=1.0, momentum=0.95, weight_decay=0.0).step()
            updates.append(weight.detach())
        whole, shared = updates[0], updates[1].full_tensor()
        momentum = torch.zeros(shape).lerp(gradient, 1 - 0.95)
        update = orthogonalise(gradient.lerp(momentum, 0.95).bfloat16()[None])[0].float()
        torch.testing.assert_close(whole, -update * max(1, shape[0] / shape[1]) ** 0.5)
        assert torch.equal(shared, whole)


check()  # whose tensors, which refer to the process group, are gone when that is left
accelerator.wait_for_everyone()
leave_process_group()
"""


@pytest.mark.slow
def test_muon_updates_a_sharded_matrix_as_a_full_one(tmp_path):
    (tmp_path / "muon.py").write_text(MUON)
    launch_two(str(tmp_path / "muon.py"))
