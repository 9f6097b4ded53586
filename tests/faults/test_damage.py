"""States with a flipped bit or a missing end: each is found and named, and the state before is used."""

import os
import random
import shutil
import warnings

import pytest
from helpers.training import outcome, run_sharded

from dalle_mini_impl.train.shared import sharded_state, state
from dalle_mini_impl.train.shared.saved_tensors import DamagedState
from dalle_mini_impl.util.errors import UserError

ROW = "states with a flipped bit or cut off, found and named"


def flip(path, chance):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path, chance):
    """Cut a file off."""
    os.truncate(path, chance.randrange(path.stat().st_size))


@pytest.fixture(scope="module")
def sharded(trained, tmp_path_factory):
    """A finished run of a sharded model, with its states."""
    home = trained.copy(tmp_path_factory.mktemp("sharded") / "home", "transformer")
    run_sharded(home.run, "transformer")
    return home


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("stage", ["image_tokenizer", "transformer", "scorer"])
def test_damage_in_a_state_is_found(trained, tmp_path, tries, report, stage, damage):
    good = trained.folder / stage / "state.pt"
    state.read_file(good)
    count = tries(300, 20)
    for number in range(count):
        path = shutil.copy(good, tmp_path / "state.pt")
        damage(path, random.Random(number))
        with pytest.raises(DamagedState):
            state.read_file(path)
    report(ROW, f"{stage} {damage.__name__} {count} of {count}")


@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_in_a_sharded_state_is_found(sharded, tmp_path, tries, report, damage):
    good = sharded.folder / "transformer" / "state-00000010"
    files = sorted(path.name for path in good.iterdir())
    assert files == [".metadata", "__0_0.distcp", "run.json"]
    count = tries(300, 20)
    for number in range(count):
        folder = shutil.copytree(good, tmp_path / "state-00000010", dirs_exist_ok=True)
        damage(folder / files[number % 3], random.Random(number))
        with pytest.raises(DamagedState):
            sharded_state._check_files(folder, ALONE)
    report(ROW, f"sharded {damage.__name__} {count} of {count}")


class ALONE:
    """The only process of a run."""

    process_index = 0
    num_processes = 1


@pytest.mark.parametrize("damage", [flip, cut])
def test_the_state_before_a_damaged_one_is_used(trained, tmp_path, tries, report, damage):
    count = tries(20, 2)
    for number in range(count):
        stage = ("image_tokenizer", "transformer", "scorer")[number % 3]
        home = trained.copy(tmp_path / str(number))
        damage(home.folder / stage / "state.pt", random.Random(number))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            home.run(stage, "--resume")
        (line,) = [str(one.message) for one in told if "is damaged" in str(one.message)]
        assert line.startswith(f"{home.folder / stage / 'state.pt'} is damaged (")
        assert line.endswith("; going on from previous-state.pt, after step 8")
        assert outcome(home, stage) == outcome(trained, stage)
    report("damaged states, the one before resumed", f"{damage.__name__} {count} of {count} equal")


def test_when_all_states_are_damaged_each_is_named(trained, tmp_path):
    home = trained.copy(tmp_path / "home")
    folder = home.folder / "transformer"
    for name in ("state.pt", "previous-state.pt"):
        flip(folder / name, random.Random(0))
    with pytest.raises(UserError) as caught:
        home.run("transformer", "--resume")
    assert str(caught.value).count("is damaged") == 2
    assert str(caught.value).endswith("; start without --resume")


def test_a_state_without_its_checksum_is_refused(trained, tmp_path):
    path = shutil.copy(trained.folder / "scorer" / "state.pt", tmp_path / "state.pt")
    content = path.read_bytes()
    path.write_bytes(content[:-42] + b"\0\0")
    with pytest.raises(DamagedState, match="no checksum"):
        state.read_file(path)
