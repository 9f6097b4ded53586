"""`dalle sample` for many prompts."""

import contextlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from helpers.commands import one_line
from helpers.training import launch_two
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.cli.many_prompts import MAX_GRID_PROMPTS
from dalle_mini_impl.util.save_picture import read_metadata


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sample(tiny_model):
    """Run `dalle sample` on the tiny model, three candidates each, of which two are kept."""

    def run(*arguments):
        fixed = ["sample", "--device", "cpu", "--model", str(tiny_model), "--candidates", "3", "--keep", "2"]
        result = CliRunner().invoke(dalle, [*fixed, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    return run


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def write_prompts(*lines, name="prompts.jsonl"):
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    Path(name).write_text("\n".join(texts), encoding="utf-8")
    return name


def test_pictures_of_many_prompts_are_those_of_the_api(sample, tiny_dalle):
    file = write_prompts({"prompt": "a cat", "seed": 5}, {"prompt": "心形", "guidance": 1.0})
    arguments = (
        "a red heart",
        "--prompts-file",
        file,
        "--no-grid",
        "--save-dir",
        "out",
        "--top-k",
        "11",
        "--zoom",
        "2",
    )
    assert sample(*arguments) == ["out: 3 prompts, 3 of them drawn now"]
    assert sample(*arguments) == ["out: 3 prompts, 0 of them drawn now"]
    assert sorted(os.listdir()) == ["out", "prompts.jsonl"]
    entries = [json.loads(line) for line in Path("out/00000.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [{"prompt": "a red heart"}, {"prompt": "a cat", "seed": 5}, {"prompt": "心形", "guidance": 1.0}]
    for entry, prompt in zip(entries, prompts, strict=True):
        expected = tiny_dalle.generate(**{"candidates": 3, "keep": 2, "top_k": 11, **prompt})
        for picture, candidate in zip(entry["pictures"], expected, strict=True):
            larger = np.asarray(candidate.image).repeat(2, 0).repeat(2, 1)
            assert np.array_equal(pixels(f"out/{picture['file']}"), larger)
            assert picture["seed"] == candidate.seed
            assert picture["score"] == pytest.approx(candidate.score, rel=1e-5)


def test_a_picture_of_many_can_be_drawn_again(sample, tiny_model):
    file = write_prompts({"prompt": "a cat", "seed": 5, "guidance": 1.5}, {"prompt": "a dog"})
    sample("--prompts-file", file, "--no-grid", "--save-dir", "out")
    path = "out/00000/00000000-02.png"
    CliRunner().invoke(dalle, ["sample", "--from", path, "--model", str(tiny_model), "--out", "again.png"])
    assert np.array_equal(pixels("again.png"), pixels(path))


@pytest.mark.slow
def test_two_processes_write_shards_without_gathering_them(sample, tiny_model):
    prompts = ["a red heart", "a cat", "zwei Katzen", "a dog", "心形"]
    write_prompts(*prompts, name="prompts.txt")
    arguments = ["--texts-file", "prompts.txt", "--shards", "--save-dir", "out"]
    settings = ["--model", str(tiny_model), "--device", "cpu", "--candidates", "3", "--keep", "2"]
    output = launch_two("-m", "dalle_mini_impl", "sample", *settings, *arguments)
    assert output.splitlines().count("out: 5 prompts, 5 of them drawn now") == 1
    names = ["00000.jsonl", "00000.tar", "00001.jsonl", "00001.tar", "settings.json"]
    assert sorted(os.listdir("out")) == names  # a block for each process
    assert sample(*arguments) == ["out: 5 prompts, 0 of them drawn now"]
    sample(*arguments[:-1], "alone")
    assert members_of("out") == members_of("alone")
    assert len(members_of("out")) == 5 * 2 * 3


def test_few_lines_of_json_make_a_grid(sample, tiny_dalle):
    same = {"prompt": "a cat", "seeds": [7, 8], "temperature": 0.5}
    file = write_prompts({**same, "seeds": [3]}, same, same)
    sample("--prompts-file", file)
    pictures = read_metadata("grid.png")["pictures"]
    assert [picture["seed"] for picture in pictures[:1]] == [3]
    assert sorted(picture["seed"] for picture in pictures[1:]) == [7, 8]  # a repeated line counts once
    assert read_metadata("grid.png")["sampling"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a cat", "--no-grid"), "expected --save-dir FOLDER with --no-grid or --shards, got none"),
        (("a cat", "--shards", "--save-dir", "out", "--out", "x.png"), "--no-grid or --shards without --out, got both"),
        (("a cat", "--shards", "--save-dir", "out", "--json", "-"), "without --json, got both"),
        (("--no-grid", "--save-dir", "out", "--from", "x.png"), "without --from, got both"),
        (("--no-grid", "--save-dir", "out"), "expected at least one prompt, got none"),
        (("--no-grid", "--save-dir", "out", "--prompts-file", "bad.jsonl"), "(line 2: a prompt: unknown key 'sed'"),
        (
            ("--no-grid", "--save-dir", "out", "--prompts-file", "wrong.jsonl"),
            "prompt 2, 'a dog': expected a temperature of 0 or more, got -1.0",
        ),
        (("a cat", "--ray", "local"), "expected --ray with --no-grid or --shards, got neither"),
        (("a cat", "--ray-workers", "2"), "expected --ray ADDRESS with --ray-workers 2, got none"),
        (
            ("a cat", "--shards", "--save-dir", "out", "--ray", "local", "--device", "cuda:1"),
            "expected --ray with --device auto, cpu or cuda, got cuda:1; Ray gives each worker",
        ),
        (("--prompts-file", "different.jsonl"), "expected prompts with the same guidance for a grid, got several"),
        (("--prompts-file", "many.txt"), f"expected at most {MAX_GRID_PROMPTS} prompts for a grid, got more"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tiny_model, arguments, message):
    write_prompts({"prompt": "a cat"}, {"prompt": "a dog", "sed": 3}, name="bad.jsonl")
    write_prompts({"prompt": "a cat"}, {"prompt": "a dog", "temperature": -1}, name="wrong.jsonl")
    write_prompts({"prompt": "a cat"}, {"prompt": "a dog", "guidance": 2}, name="different.jsonl")
    write_prompts(*(str(number) for number in range(MAX_GRID_PROMPTS + 1)), name="many.txt")
    assert message in one_line(refused("sample", *arguments, "--model", tiny_model))
    assert not Path("out/settings.json").exists()


@pytest.mark.slow
def test_workers_on_ray_draw_the_same_pictures_although_one_is_killed(sample, tiny_model):
    pytest.importorskip("ray")
    write_prompts(*(f"a cat {number}" for number in range(300)), name="prompts.txt")
    arguments = ["--prompts-file", "prompts.txt", "--shards", "--model", str(tiny_model), "--device", "cpu", "-n", "1"]
    command = [sys.executable, "-m", "dalle_mini_impl", "sample", *arguments, "--keep", "1", "--save-dir", "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with open("printed.txt", "w+") as printed:
        process = subprocess.Popen(
            [*command, "--ray", "local", "--ray-workers", "2"], env=environment, stdout=printed, stderr=printed
        )
        killed = None
        while process.poll() is None:
            if killed is None and list(Path("out").glob("*.part")):
                killed = kill_worker(psutil.Process(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)  # a turn of polling; nothing depends on its length
        printed.seek(0)
        text = printed.read()
    assert killed is not None
    assert process.returncode == 0, text
    assert "out: 300 prompts, " in text
    assert len(list(Path("out").glob("*.tar"))) == 8  # four blocks for each worker
    assert sample(*arguments, "--keep", "1", "--save-dir", "out") == ["out: 300 prompts, 0 of them drawn now"]
    sample(*arguments, "--keep", "1", "--save-dir", "alone")
    assert members_of("out") == members_of("alone")


def kill_worker(process):
    """Kill a worker of Ray that a process has started and that is at work; its id, or None if there is none."""
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::_Worker"):
                child.kill()
                return child.pid
    return None


def members_of(folder):
    """Content of all members of the tars in a folder, by name."""
    members = {}
    for path in Path(folder).glob("*.tar"):
        with tarfile.open(path) as tar:
            members |= {info.name: tar.extractfile(info).read() for info in tar}
    return members
