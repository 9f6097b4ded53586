"""A run goes on in another kind of launch than the one that was cut off: whole, shared out, with other processes."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.copy_state import copying_state
from helpers.training import ADAMW, RECORD_RANKS, Killed, interrupt, launch_two, outcome, run_sharded, states

from dalle_mini_impl.train.shared import state
from dalle_mini_impl.util.errors import UserError

STEPS = ("run.steps=6", "run.validate_every=3", "run.save_every=4", "run.sample_every=0", *ADAMW)
COPY_STATE = str(Path(__file__).parents[1] / "helpers/copy_state.py")


def whole(do, *arguments):
    """Do something as a process that has the whole model: this one, as it is."""
    do(*arguments)


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """A finished run of each kind, by the kind. Tests that change anything copy it."""
    home = trained.copy(tmp_path_factory.mktemp("finished") / "home", "transformer")
    run_sharded(home.run, "transformer")
    return {whole: trained, run_sharded: home}


KINDS = pytest.mark.parametrize(("before", "after"), [(whole, run_sharded), (run_sharded, whole)])


# --- one process


@KINDS
@pytest.mark.parametrize("step", [7, 9])
def test_resumes_bit_for_bit(trained, home, monkeypatch, before, after, step):
    before(interrupt, home, "transformer", step, monkeypatch)
    after(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    assert ("state.pt" if after is whole else "state-00000010") in states(home)


@KINDS
def test_a_kill_before_the_older_state_is_removed_leaves_two_usable_states(trained, home, monkeypatch, before, after):
    before(interrupt, home, "transformer", 5, monkeypatch)
    with mock.patch.object(state, "remove_old_states", side_effect=Killed), pytest.raises(Killed):
        after(home.run, "transformer", "--resume")
    if after is whole:
        assert states(home) == ["state-00000004", "state.pt"]
        (home.folder / "transformer" / "state-00000004" / ".metadata").unlink()  # or when half of it is removed
    else:
        assert states(home) == ["state-00000008", "state.pt"]
    before(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


@KINDS
@pytest.mark.parametrize(
    "override",
    ["model.n_embd=24", "model.n_layer=3", "run.seed=5", "run.batch_size=2", "optimizer.muon_learning_rate=0"],
)
def test_another_config_is_refused(finished, before, after, override):
    home = finished[before]
    log = home.log("transformer")
    name, _, value = override.partition("=")
    message = rf"with which \S+state\S+ was started, got {name} \d+ -> {value}; change"
    if name == "optimizer.muon_learning_rate":
        message = r"state\S+ is the state of another model or optimizer \(.+\); resume with the"
    with pytest.raises(UserError, match=message):
        after(home.run, "transformer", "--resume", override)
    assert home.log("transformer") == log


@KINDS
@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_damaged_state_is_passed_over(trained, finished, tmp_path, before, after, length):
    home = finished[before].copy(tmp_path / "home")
    path = home.folder / "transformer" / ("state.pt" if before is whole else "state-00000010/__0_0.distcp")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match=r"state\S+ is damaged \(.+\); going on from \S+, after step 8"):
        after(home.run, "transformer", "--resume")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


def test_a_sharded_state_of_another_stage_is_refused(finished, home):
    (home.folder / "image_tokenizer" / "state.pt").unlink()
    shutil.copytree(finished[run_sharded].folder / "transformer", home.folder / "image_tokenizer", dirs_exist_ok=True)
    with pytest.raises(
        UserError, match=r"expected a state of ImageTokenizerRun in \S+, got one of TransformerRun; check run.state_dir"
    ):
        home.run("image_tokenizer", "--resume", "optimizer.muon_learning_rate=0.02")


# --- two processes


def in_two(launcher):
    """Run the transformer's stage in two processes, which end in the middle of a step if one is given."""

    def run(home, step, *settings):
        launch_two(
            RECORD_RANKS,
            str(home.folder),
            str(step),
            "transformer",
            *home.arguments("transformer", *settings),
            launcher=launcher,
        )

    return run


def in_one(home, step, *settings):
    """Run the transformer's stage in this process, whole, until it ends or is cut off in the middle of a step."""
    if step < 0:
        home.run("transformer", *settings)
    else:
        interrupt(home, "transformer", step, pytest.MonkeyPatch(), *settings)


LAUNCHES = {"one": in_one, "two": in_two("cpu-2"), "shares": in_two("gpus-8-fsdp")}


@pytest.fixture(scope="module")
def uninterrupted(trained, tmp_path_factory):
    home = trained.copy(tmp_path_factory.mktemp("uninterrupted") / "home", "transformer")
    home.run("transformer", *STEPS)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [("one", "two"), ("two", "one"), ("one", "shares"), ("shares", "one"), ("two", "shares"), ("shares", "two")],
)
def test_resumes_with_another_number_of_processes(uninterrupted, home, before, after):
    LAUNCHES[before](home, 5, *STEPS)
    assert home.log("transformer")[-1]["step"] == 4
    assert states(home)[-1] == ("state-00000004" if before == "shares" else "state.pt")
    LAUNCHES[after](home, -1, *STEPS, "--resume")
    assert ("state-00000006" if after == "shares" else "state.pt") in states(home)
    assert len(home.log("transformer")) == 8
    for line, expected in zip(home.log("transformer"), uninterrupted.log("transformer"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_converting_a_state_to_two_shards_and_back_changes_no_bit(finished, tmp_path):
    home, arguments = finished[whole].copy(tmp_path / "home"), ("transformer", "--resume")
    first = home.folder / "transformer" / "state.pt"
    expected = torch.load(first, weights_only=True)
    launch_two(COPY_STATE, str(tmp_path / "shares"), *home.arguments(*arguments), launcher="gpus-8-fsdp")
    written = (tmp_path / "shares" / "state-00000010").glob("*.distcp")
    assert {path.name.split("_")[2] for path in written} == {"0", "1"}
    first.unlink()
    (tmp_path / "shares" / "state-00000010").rename(first.with_name("state-00000010"))
    with copying_state(tmp_path / "whole"):
        home.run(*arguments)
    found = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)
    for optimizer in (*found["optimizers"], *expected["optimizers"]):
        for group in optimizer["param_groups"]:
            for name in {"lr", "turn"} & {*group}:  # set anew in each step
                del group[name]
    moved = expected.pop("record").replace(str(finished[whole].folder), str(home.folder))
    assert found.pop("record") == moved
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
