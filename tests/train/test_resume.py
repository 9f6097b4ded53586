import json
import signal
import subprocess
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from helpers.training import DEADLINE, Killed, interrupt, outcome, python
from torch import nn

from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.util.errors import UserError

TRAINED = ("image_tokenizer", "transformer", "scorer")


# --- a resumed run is the uninterrupted run


GAN = (
    "perceptual=gradient-ssim",
    "gan.weight=0.5",
    "gan.start=0.4",
    "gan.discriminator_warmup=3",
    "gan.channels=[5, 7]",
    "gan.r1=0.1",
    "gan.lecam=0.1",
)
DVAE = ("model.quantizer=gumbel", "model.likelihood=laplace", "dvae.temperature_share=0.7", "dvae.kl_share=0.5")


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (4, ()),
        (7, ("run.accumulation=2", "optimizer.muon_learning_rate=0.02")),
        (9, ("run.precision=bf16",)),
        (7, GAN),
        (5, (*GAN, "run.accumulation=2", "run.precision=bf16")),
        (6, DVAE),
    ],
)
def test_image_tokenizer_resumes_bit_for_bit(trained, tmp_path, monkeypatch, step, settings):
    settings = ("model.codebook_size=61", *settings)  # more entries than vectors: some restart at random in every step
    whole, broken = (trained.copy(tmp_path / name, "image_tokenizer") for name in ("whole", "broken"))
    whole.run("image_tokenizer", *settings)
    interrupt(broken, "image_tokenizer", step, monkeypatch, *settings)
    assert broken.log("image_tokenizer")[-1]["step"] == step - 1
    broken.run("image_tokenizer", "--resume", *settings)
    assert outcome(broken, "image_tokenizer") == outcome(whole, "image_tokenizer")


@pytest.mark.parametrize("step", [4, 7, 9])
def test_scorer_resumes_bit_for_bit(trained, tmp_path, monkeypatch, step):
    broken = trained.copy(tmp_path / "broken", "scorer")
    (broken.folder / "model" / "scorer.safetensors").unlink()
    interrupt(broken, "scorer", step, monkeypatch)
    broken.run("scorer", "--resume")
    assert outcome(broken, "scorer") == outcome(trained, "scorer")


def test_transformer_resumes_bit_for_bit_after_sigkill(trained, tmp_path):
    settings = ("run.steps=120", "run.save_every=10", "run.validate_every=40", "run.sample_every=0")
    whole, broken = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "broken"))
    (broken.folder / "model" / "transformer.safetensors").unlink()
    arguments = ("-m", "dalle_mini_impl.train.transformer", *broken.arguments("transformer", *settings))
    with (tmp_path / "output").open("w") as output:
        process = python(*arguments, stdout=output, stderr=output)
        try:
            wait_for_step(broken.folder / "transformer" / "log.jsonl", 25, process)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    reached = broken.log("transformer")[-1]["step"]
    assert 25 <= reached < 119
    load_transformer(broken.folder / "model")  # what was saved on the way can be used
    whole.run("transformer", *settings)
    broken.run("transformer", *settings, "--resume")
    assert len(whole.log("transformer")) == 123
    assert outcome(broken, "transformer") == outcome(whole, "transformer")


def wait_for_step(log, step, process):
    """Wait until a process has logged a step."""
    deadline = time.monotonic() + DEADLINE
    while not log.is_file() or not any(json.loads(line)["step"] >= step for line in whole_lines(log)):
        assert time.monotonic() < deadline
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ended with {process.wait(timeout=0.02)}")


def whole_lines(path):
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_kill_while_saving_leaves_the_state_before(trained, tmp_path, monkeypatch):
    broken = trained.copy(tmp_path / "broken", "transformer")
    save = torch.save

    def deadly(state, path):
        if state["step"] == 8:
            path.write_bytes(b"half")
            raise Killed
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", deadly)
        with pytest.raises(Killed):
            broken.run("transformer")
    assert torch.load(broken.folder / "transformer" / "state.pt", weights_only=True)["step"] == 4
    broken.run("transformer", "--resume")
    assert outcome(broken, "transformer") == outcome(trained, "transformer")


@pytest.mark.parametrize("stage", TRAINED)
def test_resuming_a_finished_run_changes_nothing(trained, tmp_path, stage):
    home = trained.copy(tmp_path / "home")
    (home.folder / "model" / f"{stage}.safetensors").unlink()
    home.run(stage, "--resume")
    assert outcome(home, stage) == outcome(trained, stage)


def test_starting_again_begins_at_the_first_step(trained, tmp_path):
    home = trained.copy(tmp_path / "home")
    home.run("transformer")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


# --- what a state holds


def test_each_process_restores_its_own_tensors(tmp_path):
    run = RunConfig(state_dir=str(tmp_path))
    model, generators, counts = nn.Linear(2, 3), [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        generators.append(torch.get_rng_state())
        counts.append(torch.full((5,), seed + 7))

    def accelerator(index):
        return SimpleNamespace(
            is_main_process=index == 0,
            process_index=index,
            device=torch.device("cpu"),
            unwrap_model=lambda model: model,
            wait_for_everyone=lambda: None,
            gather_for_metrics=lambda own, use_gather_object: list(
                zip(generators, [{"counts": c} for c in counts], strict=True)
            ),
        )

    average = Ema(model, 0.9)
    save_state(accelerator(0), run, 3, model, [], average, counts=counts[0])
    for index in (0, 1, 2, 3):  # with more processes than before, the numbers are dealt out again
        torch.manual_seed(99)
        found = torch.zeros(5, dtype=torch.int64)
        assert load_state(accelerator(index), run, model, [], average, counts=found) == 4
        assert torch.equal(torch.get_rng_state(), generators[index % 2])
        assert torch.equal(found, counts[index % 2])


# --- what cannot be resumed


def test_resume_without_a_state_is_refused(trained, tmp_path):
    for stage in TRAINED:
        home = trained.copy(tmp_path / stage, stage)
        with pytest.raises(
            UserError, match=rf"expected state\.pt or state-\* in .*/{stage} for --resume, got neither; start without"
        ):
            home.run(stage, "--resume")


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("image_tokenizer", "model.codebook_size=17"),
        ("image_tokenizer", "model.channels=[24]"),
        ("transformer", "model.n_embd=24"),
        ("transformer", "model.n_layer=3"),
        ("transformer", "optimizer.muon_learning_rate=0"),
        ("scorer", "model.embed_dim=11"),
    ],
)
def test_resume_with_another_model_is_refused(trained, stage, override):
    before = trained.log(stage)
    with pytest.raises(UserError, match=r"state\.pt is the state of another model or optimizer .* it was started with"):
        trained.run(stage, "--resume", override)
    assert trained.log(stage) == before


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_resume_from_a_damaged_state_is_refused(trained, tmp_path, length):
    home = trained.copy(tmp_path / "home")
    path = home.folder / "transformer" / "state.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"state\.pt is damaged .*; start without --resume"):
        home.run("transformer", "--resume")
