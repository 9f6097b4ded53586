import math
import os
import pickle
import signal
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.training import ADAMW, Killed, interrupt, outcome, python, run_sharded, wait_for_step
from torch import nn

from dalle_mini_impl.config.scenes import ScenesConfig
from dalle_mini_impl.config.training import ImageTokenizerRun, RunConfig, ScorerRun, TransformerRun
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.train.shared import state
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.run_record import RunRecord, changed_settings, make_record
from dalle_mini_impl.train.shared.saved_tensors import DamagedState
from dalle_mini_impl.train.shared.state import find_states, load_state, read_file, save_state
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import only_writer

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
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**power) for power in (5, 9)]
    for seed in (0, 1):
        torch.manual_seed(seed)
        generators.append(torch.get_rng_state())
        counts.append(torch.full((5,), seed + 7))

    def accelerator(index):
        return SimpleNamespace(
            is_main_process=index == 0,
            process_index=index,
            device=torch.device("cpu"),
            scaler=scalers[index % 2],
            unwrap_model=lambda model: model,
            wait_for_everyone=lambda: None,
            reduce=lambda value, kind: value,
            gather_for_metrics=lambda own, use_gather_object: list(
                zip(generators, [{"counts": c, "scaler": torch.tensor([64.0, 3.0])} for c in counts], strict=True)
            ),
        )

    average = Ema(model, 0.9)
    save_state(accelerator(0), run, 3, model, [], average, RunRecord(), counts=counts[0])
    for index in (0, 1, 2, 3):  # with more processes than before, the numbers are dealt out again
        torch.manual_seed(99)
        found = torch.zeros(5, dtype=torch.int64)
        assert load_state(accelerator(index), run, model, [], average, RunRecord(), counts=found) == 4
        assert torch.equal(torch.get_rng_state(), generators[index % 2])
        assert torch.equal(found, counts[index % 2])
        scaling = scalers[index % 2].state_dict()
        assert (scaling["scale"], scaling["_growth_tracker"]) == (64.0, 3)


# --- how many states are kept


@pytest.mark.parametrize(
    ("keep", "every", "expected"),
    [
        (2, 0, ["previous-state.pt", "state.pt"]),
        (1, 0, ["state.pt"]),
        (4, 0, ["previous-state.pt", "state-00000006.pt", "state-00000009.pt", "state.pt"]),
        (2, 6, ["previous-state.pt", "state-00000006.pt", "state.pt"]),
        (1, 6, ["previous-state.pt", "state-00000006.pt", "state.pt"]),
    ],
)
def test_the_last_states_and_every_so_manieth_are_kept(tmp_path, keep, every, expected):
    run = RunConfig(state_dir=str(tmp_path), keep_states=keep, keep_every=every)
    process = SimpleNamespace(
        is_main_process=True,
        device=torch.device("cpu"),
        scaler=None,
        unwrap_model=lambda model: model,
        wait_for_everyone=lambda: None,
        reduce=lambda value, kind: value,
        gather_for_metrics=lambda own, use_gather_object: own,
    )
    model = nn.Linear(2, 3)
    for steps in (3, 6, 9, 12, 15):
        save_state(process, run, steps - 1, model, [], Ema(model, 0.9), RunRecord())
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == expected
    newest, *older = find_states(tmp_path)
    assert newest.name == "state.pt"
    assert [int(read_file(path)["step"]) for path in older] == sorted(
        (int(read_file(path)["step"]) for path in older), reverse=True
    )


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
    message = r"expected the settings with which \S+ was started, got model|is the state of another model or optimizer"
    with pytest.raises(UserError, match=message):
        trained.run(stage, "--resume", override)
    assert trained.log(stage) == before


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_damaged_state_is_passed_over(trained, tmp_path, length):
    home = trained.copy(tmp_path / "home")
    path = home.folder / "transformer" / "state.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match=r"state\.pt is damaged .*; going on from previous-state\.pt, after step 8"):
        home.run("transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    for damaged in (path, path.with_name("previous-state.pt")):
        damaged.write_bytes(damaged.read_bytes()[:length])
    with pytest.raises(UserError, match=r"state\.pt is damaged .*state\.pt is damaged .*; start without --resume"):
        home.run("transformer", "--resume")


# --- settings that change


CHANGES = ("optimizer.learning_rate=0.0005", "optimizer.betas=[0.5, 0.6]", "optimizer.weight_decay=0.7", "run.ema=0.1")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("launch", [lambda do, *rest: do(*rest), run_sharded], ids=["whole", "sharded"])
def test_a_changed_setting_is_applied_and_told(trained, tmp_path, monkeypatch, capsys, change, launch):
    settings = ("run.steps=6", "run.save_every=3", *ADAMW)
    homes = [trained.copy(tmp_path / name, "transformer") for name in ("same", "changed")]
    for home, override in zip(homes, ((), (change,)), strict=True):
        launch(interrupt, home, "transformer", 4, monkeypatch, *settings)
        launch(home.run, "transformer", "--resume", *settings, *override)
    name = change.partition("=")[0]
    assert f"resumed with other settings from here on: {name} " in capsys.readouterr().out
    written = [(home.folder / "transformer" / "config.yaml").read_text() for home in homes]
    assert written[0] != written[1]
    assert outcome(homes[0], "transformer") != outcome(homes[1], "transformer")


@pytest.mark.parametrize("change", ["run.seed=3", "run.batch_size=2", "model.n_head=1"])
def test_a_changed_setting_that_cannot_be_applied_is_refused(trained, change):
    before = trained.log("transformer")
    name, _, value = change.partition("=")
    message = rf"expected the settings with which \S+state\.pt was started, got {name} \d+ -> {value}; change them back"
    with pytest.raises(UserError, match=message):
        trained.run("transformer", "--resume", change)
    assert trained.log("transformer") == before


@pytest.mark.parametrize("config", [ImageTokenizerRun(), TransformerRun(), ScorerRun()], ids=type)
def test_settings_that_an_older_record_lacks_had_their_defaults(config):
    run = make_record(config, {})
    left = {name: value for name, value in run.settings.items() if not name.startswith(("scenes.", "optimizer."))}
    older = RunRecord(run.stage, left)
    assert changed_settings(older, run, "state.pt") == []
    changed = make_record(replace(config, run=RunConfig(ema=0.5)), {})
    assert changed_settings(older, changed, "state.pt") == ["run.ema 0.999 -> 0.5"]
    with pytest.raises(UserError, match=r'got scenes\.store default -> "emoji"; change them back'):
        changed_settings(older, make_record(replace(config, scenes=ScenesConfig(store="emoji")), {}), "state.pt")


def test_the_content_of_a_scenes_store_counts_and_not_its_path():
    def record(store, version, share=0.5):
        return make_record(ScorerRun(scenes=ScenesConfig(store=store, share=share)), {}, version)

    saved = record("emoji-store", "v1")
    assert changed_settings(saved, record("/moved/store", "v1"), "state.pt") == []
    assert changed_settings(saved, record("/moved/store", "v2"), "state.pt") == ['pictures "v1" -> "v2"']
    assert changed_settings(saved, record("/moved/store", "v1", 0.25), "state.pt") == ["scenes.share 0.5 -> 0.25"]
    with pytest.raises(UserError, match=r"expected the settings with which state\.pt was started, got scenes\.store"):
        changed_settings(saved, record("", "v1"), "state.pt")


# --- states that are altered


def test_every_flipped_bit_of_a_tensor_is_found(trained, tmp_path):
    path = tmp_path / "state.pt"
    whole = (trained.folder / "transformer" / "state.pt").read_bytes()
    with zipfile.ZipFile(trained.folder / "transformer" / "state.pt") as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    for entry in entries:
        start = whole.index(entry.filename.encode(), entry.header_offset) + len(entry.filename)
        start += int.from_bytes(whole[entry.header_offset + 28 : entry.header_offset + 30], "little")
        for place in (start, start + entry.file_size // 2, start + entry.file_size - 1):
            broken = bytearray(whole)
            broken[place] ^= 16
            path.write_bytes(broken)
            with pytest.raises(DamagedState):
                state.read_file(path)
    path.write_bytes(whole)
    assert state.read_file(path)["step"] == 10


@pytest.mark.parametrize(
    "alter",
    [
        lambda saved: [],
        lambda saved: {**saved, "step": "ten"},
        lambda saved: {**saved, "step": -1},
        lambda saved: {**saved, "model": None},
        lambda saved: {**saved, "model": dict.fromkeys(saved["model"], 3)},
        lambda saved: {**saved, "model": {name: value * math.nan for name, value in saved["model"].items()}},
        lambda saved: {**saved, "average": []},
        lambda saved: {**saved, "rng": []},
        lambda saved: {**saved, "rng": [torch.zeros(3)]},
        lambda saved: {**saved, "optimizers": [{}]},
        lambda saved: {**saved, "record": "{}"},
        lambda saved: {**saved, "record": 7},
        lambda saved: {name: value for name, value in saved.items() if name != "rng"},
    ],
)
def test_a_state_of_another_form_is_named(trained, tmp_path, alter):
    home = trained.copy(tmp_path / "home")
    path = home.folder / "transformer" / "state.pt"
    torch.save(alter(torch.load(path, weights_only=True)), path)
    path.with_name("previous-state.pt").unlink()
    with pytest.raises(UserError, match=r"state\.pt is damaged \(.+\); start without --resume"):
        home.run("transformer", "--resume")


def test_an_index_that_calls_something_else_is_not_obeyed(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "transformer")
    run_sharded(home.run, "transformer")
    for folder in (home.folder / "transformer").glob("state-*"):
        (folder / "run.json").unlink()  # as in states of old versions, which have no checksums
        (folder / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match=r"state-00000010 is damaged \(UnpicklingError\)"):
        home.run("transformer", "--resume")
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


# --- runs that diverge


@pytest.mark.parametrize("stage", ["transformer", "scorer"])
def test_a_diverging_run_keeps_the_last_good_state_and_part(trained, tmp_path, stage):
    home = trained.copy(tmp_path / "home")
    part = (home.folder / "model" / f"{stage}.safetensors").read_bytes()
    settings = ("run.steps=12", "run.save_every=1", "run.log_every=1", "optimizer.clip=1e30")
    with pytest.raises(UserError, match=r"expected finite .*, got .*(nan|inf|NaN).*; lower optimizer\.learning_rate"):
        home.run(stage, *settings, "optimizer.learning_rate=1e30", "optimizer.muon_learning_rate=0")
    assert (home.folder / "model" / f"{stage}.safetensors").read_bytes() == part or stage == "transformer"
    for path in (home.folder / stage).glob("*state.pt"):
        saved = torch.load(path, weights_only=True)
        assert all(bool(torch.isfinite(value).all()) for value in saved["model"].values() if value.is_floating_point())


@pytest.mark.parametrize("stage", ["transformer", "scorer"])
def test_a_run_that_diverges_ends_in_that_step(trained, tmp_path, stage):
    home = trained.copy(tmp_path / "home", stage)
    never = [f"run.{action}_every=0" for action in ("log", "validate", "sample", "save")]
    rates = ("optimizer.learning_rate=1e30", "optimizer.muon_learning_rate=0", "optimizer.clip=1e30")
    message = r"expected finite figures at step [2-5], got .* and start again without --resume"
    with pytest.raises(UserError, match=message):
        home.run(stage, "run.steps=50", *never, *rates, "optimizer.warmup_steps=0")


# --- two runs


def test_a_second_run_in_the_same_folder_is_refused(trained, tmp_path):
    home = trained.copy(tmp_path / "home")
    with only_writer(home.folder / "transformer"), pytest.raises(UserError, match="got another run that is writing it"):
        home.run("transformer")
    with (
        only_writer(home.folder / "model" / "scorer.safetensors"),
        pytest.raises(UserError, match="got another run that is writing it"),
    ):
        home.run("scorer", f"run.state_dir={tmp_path}/elsewhere")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


def test_a_garbled_log_is_repaired(trained, tmp_path, monkeypatch):
    home = trained.copy(tmp_path / "home", "transformer")
    interrupt(home, "transformer", 9, monkeypatch)
    path = home.folder / "transformer" / "log.jsonl"
    path.write_bytes(path.read_bytes() + b"\0\0\0\n" + b"\xff{\n" + b"[1]\n" + b'{"step": 3')
    home.run("transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


def test_an_earlier_run_is_set_aside_until_the_next(trained, tmp_path, capsys):
    home = trained.copy(tmp_path / "home")
    old = (home.folder / "transformer" / "state.pt").read_bytes()
    home.run("transformer", "run.steps=3", "run.save_every=0")
    assert f"the state and log of an earlier run in {home.folder}/transformer were moved to" in capsys.readouterr().out
    assert (home.folder / "transformer" / "earlier" / "state.pt").read_bytes() == old
    home.run("transformer", "run.steps=3", "run.save_every=0")
    assert (home.folder / "transformer" / "earlier" / "state.pt").read_bytes() == old
