"""A disk that becomes full in the middle of a training run: one line, nothing lost, and on it goes with space."""

import random
import shutil

import pytest
from helpers.disks import fill_disk, small_disk
from helpers.training import outcome, run_sharded

from dalle_mini_impl.train.shared import loop, state
from dalle_mini_impl.util.errors import UserError

ROW = "full disk in a training run, continued with space"
STAGES = ("image_tokenizer", "transformer", "scorer")


def plainly(function, *arguments):
    """Call a function."""
    function(*arguments)


def fill_at(monkeypatch, step, folder, spare):
    """Fill the disk of a folder at the end of a step, but for some bytes."""
    is_due = loop.is_due
    filled = []

    def filling(current, every, run):
        if current == step and not filled:
            filled.append(fill_disk(folder, spare))
        return is_due(current, every, run)

    monkeypatch.setattr(loop, "is_due", filling)
    return filled


@pytest.mark.parametrize("way", [plainly, run_sharded])
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_loses_nothing(trained, tmp_path, monkeypatch, tries, report, stage, way):
    if way is run_sharded and stage != "transformer":
        pytest.skip("only the transformer can be sharded")
    count = tries(20, 2)
    for number in range(count):
        chance = random.Random(number)
        full = ("state", "model")[number % 2]
        home = trained.copy(tmp_path / f"home-{number}", stage)
        (home.folder / "model" / f"{stage}.safetensors").unlink()
        with small_disk(tmp_path / f"disk-{number}", 8192) as disk:
            shutil.copytree(home.folder / "model", disk / "model")
            settings = (f"run.{full}_dir={disk / full}", "run.log_every=1", "run.sample_every=0")
            with monkeypatch.context() as patch:
                # from the last step on only parts are written to the model's folder
                step = 9 if full == "model" else chance.randrange(4, 10)
                fill_at(patch, step, disk, chance.randrange(16_000))
                with pytest.raises(UserError) as caught:
                    way(home.run, stage, *settings)
            message = str(caught.value)
            assert message.startswith(f"cannot write {disk}"), message
            assert "make space" in message
            assert "\n" not in message
            states = state.find_states(disk / "state" if full == "state" else home.folder / stage)
            assert states, "a state from before"
            for path in states:
                if path.is_file():
                    state.read_file(path)
            (disk / "ballast").unlink()
            way(home.run, stage, *settings, "--resume")
            if full == "state":
                shutil.copytree(disk / "state", home.folder / stage)
            else:
                shutil.copytree(disk / "model", home.folder / "model", dirs_exist_ok=True)
            assert not [path for path in disk.rglob(".*") if path.name != ".metadata"], "litter"
        assert outcome(home, stage) == outcome(trained, stage)
    report(ROW, f"{stage}{' sharded' if way is run_sharded else ''} {count} of {count} equal")
