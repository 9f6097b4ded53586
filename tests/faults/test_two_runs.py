"""Two runs in one folder: the second is refused in one line, and the first is not disturbed."""

import re
import shutil

import pytest
from helpers.processes import Forked
from helpers.training import config_of, launch, launch_two, outcome

from dalle_mini_impl.data.picture_store import build_store
from dalle_mini_impl.util.errors import UserError

ROW = "a second run in the folder of the first, refused"
STAGES = ("image_tokenizer", "transformer", "scorer")
ENDLESS = ("run.steps=1000000", "run.sample_every=0", "run.validate_every=0")


@pytest.fixture
def running(trained, tmp_path):
    """Start a stage in a copy of what was trained, and wait until it trains; it is killed in the end."""
    started = []

    def start(stage):
        home = trained.copy(tmp_path / "home", stage)
        (home.folder / "model" / f"{stage}.safetensors").unlink()
        process = Forked(tmp_path / "output", home.run, stage, *ENDLESS)
        started.append(process)
        process.wait_until(lambda: (home.folder / stage / "log.jsonl").is_file() and home.log(stage)[3:])
        return home, process

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shared", ["state_dir", "model_dir"])
def test_the_second_run_is_refused(trained, running, tmp_path, report, stage, shared):
    home, process = running(stage)
    for folder in ("state_dir", "model_dir"):
        if folder != shared:
            shutil.copytree(trained.folder / "model", tmp_path / folder)
            elsewhere = f"run.{folder}={tmp_path / folder}"
    with pytest.raises(UserError, match=r"expected to write \S+ alone, got another run that is writing it; wait") as e:
        home.run(stage, elsewhere)
    assert str(home.folder) in str(e.value)
    assert "\n" not in str(e.value)
    process.wait_until(lambda: home.log(stage)[5:])  # the first goes on
    report(ROW, f"{stage} {shared}")


def test_a_run_after_a_killed_one_is_not_refused(trained, running):
    home, process = running("transformer")
    process.kill()
    process.kill = lambda: None
    home.run("transformer")
    assert outcome(home, "transformer") == outcome(trained, "transformer")


def content(folder):
    """Every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build(home):
    build_store(config_of(home, "encode").data)


def encode(home):
    home.run("encode")


@pytest.mark.parametrize(("function", "result"), [(build, "store"), (encode, "ids")])
def test_of_two_that_write_one_folder_at_once_each_ends_whole_or_is_refused(
    trained, tmp_path, tries, report, function, result
):
    home = trained.copy(tmp_path / "home", result)
    function(home)
    alone = content(home.folder / result)
    count = tries(20, 2)
    refused = 0
    for number in range(count):
        if number % 2:  # every other time there is nothing yet
            shutil.rmtree(home.folder / result)
        processes = [Forked(tmp_path / f"output {which}", function, home) for which in range(2)]
        codes = [process.wait() for process in processes]
        for process, code in zip(processes, codes, strict=True):
            if code:
                last = process.output.read_text().splitlines()[-1]
                assert re.search(
                    r"UserError: expected to write \S+ alone, got another run that is writing it; wait", last
                )
                refused += 1
        assert 0 in codes
        assert content(home.folder / result) == alone
    report(ROW, f"two that write {result} at once {count} of {count} whole, {refused} refused")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["image_tokenizer", "encode", "transformer", "scorer"])
def test_more_processes_than_pictures(untrained, trained, tmp_path, stage):
    """One picture for validation and two for training, in two processes."""
    home = trained.copy(tmp_path / "home", "store", "ids", stage)
    (home.folder / "model" / f"{stage}.safetensors").unlink(missing_ok=True)
    for path in sorted((home.folder / "pictures").iterdir())[6:]:
        path.unlink()
    settings = [f"data.source={home.folder / 'pictures'}"] if stage != "transformer" else []
    if stage == "transformer":
        home.run("encode", f"data.source={home.folder / 'pictures'}")
    batch = [] if stage == "encode" else ["run.batch_size=2"]
    output = launch_two("-m", f"dalle_mini_impl.train.{stage}", *home.arguments(stage, *settings, *batch))
    assert "Traceback" not in output


@pytest.mark.slow
def test_all_processes_of_a_second_run_end_with_one_line(running):
    home, _ = running("transformer")
    code, output = launch("cpu-2", 2, "-m", "dalle_mini_impl.train.transformer", *home.arguments("transformer"))
    assert code != 0
    assert output.startswith("error: expected to write ")
    assert output.count("\n") == 1
