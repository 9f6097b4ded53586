"""SIGKILL at random moments of each training stage; afterwards the result is that of an undisturbed run."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import Forked, kill_self
from helpers.training import Home, outcome

from dalle_mini_impl.train.shared import state

RESUMABLE = ("image_tokenizer", "transformer", "scorer")
LONG = ("run.steps=30", "run.save_every=3", "run.validate_every=10", "run.sample_every=0")
"""Many states, and few sheets of pictures."""
ROW = "SIGKILL at random moments of a stage, then resumed or repeated"


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory):
    """The result of each stage, and the seconds that it takes, by stage. Runs each once."""
    results: dict[str, tuple[Home, float]] = {}

    def run(stage):
        if stage not in results:
            home = fresh(trained, tmp_path_factory.mktemp("undisturbed") / stage, stage)
            started = time.monotonic()
            process = Forked(home.folder / "output", home.run, stage, *settings_of(stage))
            assert process.wait() == 0, process.output.read_text()
            results[stage] = home, time.monotonic() - started
        return results[stage]

    return run


def settings_of(stage):
    """Overrides of a stage."""
    return LONG if stage in RESUMABLE else ()


def fresh(trained, folder, stage):
    """A copy of what was trained, without what the stage makes."""
    home = trained.copy(folder, stage, "ids" if stage == "encode" else stage)
    result = folder / "words.model" if stage == "text_tokenizer" else folder / "model" / f"{stage}.safetensors"
    result.unlink(missing_ok=True)
    return home


def litter(home):
    """Hidden and partial files."""
    return [
        path.relative_to(home.folder).as_posix()
        for path in home.folder.rglob("*")
        if path.name.startswith(".") or ".partial" in path.name or ".tmp" in path.name
    ]


def die_while_saving(home, stage, settings, number, share):
    """Run a stage that ends by SIGKILL when a share of the bytes of its n-th state is written."""
    save = torch.save
    saved = iter(range(number))

    def deadly(content, path):
        save(content, path)
        if next(saved, None) is None:
            os.truncate(path, int(share * path.stat().st_size))
            kill_self()

    state.torch.save = deadly
    home.run(stage, *settings)


def die_before_renaming(home, stage, settings, number):
    """Run a stage that ends by SIGKILL between two steps of the n-th replacement of its state."""
    replace = os.replace
    replaced = iter(range(number))

    def deadly(source, target):
        if Path(target).name in (state.STATE_FILE, state.PREVIOUS_FILE) and next(replaced, None) is None:
            kill_self()
        replace(source, target)

    os.replace = deadly
    home.run(stage, *settings)


def kill_once(home, stage, seconds, chance, number):
    """Start a stage and kill it: every third time while a state is written, else at a random moment.

    Returns:
        Whether it was killed before its end.
    """
    output, settings = home.folder / "output", settings_of(stage)
    if stage in RESUMABLE and number % 3 == 0:
        save = chance.randrange(9)
        if number % 2:
            process = Forked(output, die_before_renaming, home, stage, settings, 2 * save)
        else:
            process = Forked(output, die_while_saving, home, stage, settings, save, chance.random())
        assert process.wait() == -9, output.read_text()
        return True
    process = Forked(output, home.run, stage, *settings)
    return process.wait(chance.uniform(0.02, 0.98) * seconds) is None and process.kill() == -9


def finish(home, stage):
    """Run a stage to its end, from its state if there is one."""
    resume = ("--resume",) if stage in RESUMABLE and state.find_states(home.folder / stage) else ()
    process = Forked(home.folder / "output", home.run, stage, *settings_of(stage), *resume)
    assert process.wait() == 0, process.output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", RESUMABLE)
def test_a_killed_and_resumed_run_is_the_undisturbed_one(trained, undisturbed, tmp_path, tries, report, stage):
    whole, seconds = undisturbed(stage)
    count = tries(20, 3)
    killed = 0
    for number in range(count):
        home = fresh(trained, tmp_path / str(number), stage)
        killed += kill_once(home, stage, seconds, random.Random(number), number)
        finish(home, stage)
        assert outcome(home, stage) == outcome(whole, stage), number
        assert litter(home) == [], number
        shutil.rmtree(home.folder)
    report(ROW, f"{stage} {count} of {count} equal ({killed} killed before the end)")


def test_a_killed_text_tokenizer_is_learned_again(trained, undisturbed, tmp_path, tries, report, monkeypatch):
    whole, seconds = undisturbed("text_tokenizer")
    count = tries(20, 3)
    for number in range(count):
        home = fresh(trained, tmp_path / str(number), "text_tokenizer")
        if number % 3 == 0:  # while the file is written
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", kill_self)
                process = Forked(home.folder / "output", home.run, "text_tokenizer")
                assert process.wait() == -9, process.output.read_text()
        else:
            kill_once(home, "text_tokenizer", seconds, random.Random(number), number)
        finish(home, "text_tokenizer")
        assert (home.folder / "words.model").read_bytes() == (whole.folder / "words.model").read_bytes(), number
        assert litter(home) == [], number
        shutil.rmtree(home.folder)
    report(ROW, f"text_tokenizer {count} of {count} equal")


def test_a_killed_encoding_is_done_again(trained, undisturbed, tmp_path, tries, report, monkeypatch):
    whole, seconds = undisturbed("encode")
    count = tries(20, 3)
    for number in range(count):
        home = fresh(trained, tmp_path / str(number), "encode")
        if number % 3 == 0:  # when everything is encoded
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", kill_self)
                process = Forked(home.folder / "output", home.run, "encode")
                assert process.wait() == -9, process.output.read_text()
        else:
            kill_once(home, "encode", seconds, random.Random(number), number)
        finish(home, "encode")
        assert content(home.folder / "ids") == content(whole.folder / "ids"), number
        assert litter(home) == [], number
        shutil.rmtree(home.folder)
    report(ROW, f"encode {count} of {count} equal")


def content(folder):
    """Every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
