"""A set of small pictures, configs that train in seconds, and ways to run a training stage.

The fixtures are loaded by `conftest.py`, so that all tests share one trained model.
"""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image, ImageDraw
from torch import distributed

from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.token_cache import CaptionSampler, open_cache
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train import stages
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.stream_batch import make_batch

ROOT = Path(__file__).parents[2]
STAGES = [stage.file_name for stage in stages.STAGES.values() if stage.in_all_presets]
"""Those of every `dalle train all` in order, with underscores as in the names of their files."""
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 210, 30),
    "black": (20, 20, 20),
    "pink": (250, 140, 190),
    "orange": (250, 140, 20),
}
SHAPES = ("disc", "square", "triangle", "ring", "bar", "cross")
DEADLINE = 600
"""Seconds after which a process counts as stuck; on an idle machine each takes a few."""
TIMINGS = ("seconds", "pictures_per_second")
"""Figures of the log that differ from run to run."""
ADAMW = ("optimizer.muon_learning_rate=0",)
"""Without Muon, whose orthogonalised updates magnify rounding errors."""
RECORD_RANKS = str(Path(__file__).parent / "record_ranks.py")
RUNS = {stage.file_name: stage.config for stage in stages.STAGES.values()}
"""Config class by stage."""


def draw_shape(shape: str, colour: tuple[int, int, int], side: int = 48) -> Image.Image:
    """One coloured shape on a transparent background."""
    image = Image.new("RGBA", (side, side))
    pen, low, high = ImageDraw.Draw(image), side // 8, side - side // 8
    middle, thick = side // 2, side // 8
    if shape in ("disc", "ring"):
        pen.ellipse((low, low, high, high), fill=colour if shape == "disc" else None, outline=colour, width=thick)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    elif shape == "triangle":
        pen.polygon(((middle, low), (high, high), (low, high)), fill=colour)
    if shape in ("bar", "cross"):
        pen.rectangle((low, middle - thick, high, middle + thick), fill=colour)
    if shape == "cross":
        pen.rectangle((middle - thick, low, middle + thick, high), fill=colour)
    return image


def make_pictures(folder: Path) -> Path:
    """Write 42 pictures of one shape and colour each, with a text file of two captions beside each."""
    folder.mkdir(parents=True)
    for name, colour in COLOURS.items():
        for shape in SHAPES:
            draw_shape(shape, colour).save(folder / f"{name}-{shape}.png")
            (folder / f"{name}-{shape}.txt").write_text(f"a {name} {shape}\na {shape} painted {name}\n")
    return folder


def small_configs(home: Path, pictures: Path) -> dict[str, dict[str, Any]]:
    """Settings of all stages that work in `home`; batches of 12, full precision, 10 steps."""
    augment = {"flip": 0.5, "background": 0.25}  # a variety of ids in spite of few steps
    data = {"source": str(pictures), "store": str(home / "store"), "store_size": 32, "validation": 0.2}
    words = str(home / "words.model")

    def run(stage: str) -> dict[str, Any]:
        return {
            "model_dir": str(home / "model"),
            "state_dir": str(home / stage),
            "steps": 10,
            "batch_size": 12,
            "precision": "fp32",
            "ema": 0.9,
            "log_every": 1,
            "validate_every": 5,
            "save_every": 4,
            "sample_every": 5,
        }

    optimizer = {"learning_rate": 3e-3, "warmup_steps": 3}
    return {
        "text_tokenizer": {"data": data, "out": words, "vocab_size": 300},
        "image_tokenizer": {
            "model": {
                "image_size": 16,
                "factor": 8,
                "channels": [16],
                "decoder_blocks": 1,
                "codebook_size": 13,
                "embed_dim": 5,
            },
            "data": data,
            "augment": augment,
            "optimizer": optimizer,
            "run": run("image_tokenizer"),
        },
        "encode": {
            "data": data,
            "augment": augment,
            "model_dir": str(home / "model"),
            "out": str(home / "ids"),
            "variants": 3,
            "batch_size": 7,
            "precision": "fp32",
        },
        "transformer": {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 16},
            "cache": str(home / "ids"),
            "text_tokenizer": words,
            "text_length": 11,
            "optimizer": {**optimizer, "muon_learning_rate": 0.02},
            "run": run("transformer"),
        },
        "scorer": {
            "model": {
                "image_size": 16,
                "patch_size": 8,
                "n_embd": 16,
                "n_head": 2,
                "image_layers": 1,
                "text_layers": 1,
                "text_length": 11,
                "embed_dim": 7,
            },
            "data": data,
            "augment": augment,
            "text_tokenizer": words,
            "reconstructed_share": 0.5,
            "optimizer": optimizer,
            "run": run("scorer"),
        },
        "prior": {
            "model": {
                "kind": "ar",
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 16,
                "text_length": 11,
                "components": 5,
                "buckets": 6,
            },
            "data": data,
            "optimizer": optimizer,
            "run": run("prior"),
        },
        "diffusion_decoder": {
            "model": {"image_size": 16, "channels": [8, 16], "head_dim": 8, "context_dim": 16, "attention_stages": 1},
            "sampling": {"steps": 3},
            "data": data,
            "optimizer": optimizer,
            "run": run("diffusion_decoder"),
        },
    }


def run_stage(stage: str, arguments: list[str]) -> None:
    """Run a stage's command in this process; errors are raised."""
    command = stages.stage_command(stages.STAGES[stage.replace("_", "-")])
    with command.make_context(stage, arguments) as context:
        command.invoke(context)


@dataclasses.dataclass(frozen=True)
class Home:
    """A folder with pictures, configs, and everything that was trained in it."""

    folder: Path

    def arguments(self, stage: str, *extra: str) -> list[str]:
        """Command-line arguments of a stage."""
        return ["--config", str(self.folder / f"{stage}.yaml"), *extra]

    def run(self, stage: str, *extra: str) -> None:
        """Run a stage in this process, as a fresh process would, on the CPU."""
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
            run_stage(stage, self.arguments(stage, *extra))

    def log(self, stage: str) -> list[dict[str, float]]:
        """Figures that a stage logged, without timings."""
        lines = (self.folder / stage / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]

    def copy(self, folder: Path, *without: str) -> "Home":
        """A copy, with its own paths in the configs, that leaves out some files or folders."""
        shutil.copytree(self.folder, folder, ignore=lambda at, names: without if Path(at) == self.folder else ())
        if "image_tokenizer" in without:  # one that other parts need is not replaced
            for part in ("transformer", "scorer"):
                (folder / "model" / f"{part}.safetensors").unlink(missing_ok=True)
        for path in folder.glob("*.yaml"):
            path.write_text(path.read_text().replace(f"{self.folder}/", f"{folder}/"))
        return Home(folder)


def environment() -> dict[str, str]:
    """Environment variables for subprocesses: one thread, no GPU, this checkout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}


def python(*arguments: str, **options: Any) -> subprocess.Popen:
    """Start Python in a subprocess."""
    return subprocess.Popen([sys.executable, *arguments], env=environment(), text=True, **options)


def launch(launcher: str, processes: int, *arguments: str) -> tuple[int, str]:
    """Run a module or script in several processes; returns the exit code and the output of all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / f"configs/accelerate/{launcher}.yaml"),
        "--num_processes",
        str(processes),
        "--main_process_port",
        str(port),
    ]
    process = python(*command, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    output, _ = process.communicate(timeout=DEADLINE)
    return process.returncode, output


def launch_machines(launcher: str, machines: int, processes: int, *arguments: str) -> None:
    """Run a module or script as if in so many processes on each of several machines; all must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "config_file": ROOT / f"configs/accelerate/{launcher}.yaml",
        "num_machines": machines,
        "num_processes": machines * processes,
        "main_process_ip": "127.0.0.1",
        "main_process_port": port,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    launched = [
        python("-m", "accelerate.commands.launch", *words, "--machine_rank", str(rank), *arguments,
               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        for rank in range(machines)
    ]  # fmt: skip
    for process in launched:
        output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output


def launch_two(*arguments: str, launcher: str = "cpu-2") -> str:
    """Run a module or script in two processes, which must succeed; returns their output."""
    code, output = launch(launcher, 2, *arguments)
    assert code == 0, output
    return output


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Pictures and configs, nothing trained. Tests work in a copy."""
    folder = tmp_path_factory.mktemp("untrained") / "home"
    configs = small_configs(folder, make_pictures(folder / "pictures"))
    for stage, values in configs.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(values))
    return Home(folder)


@pytest.fixture(scope="session")
def trained(untrained: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The results of all five stages. Tests that change anything work in a copy."""
    home = untrained.copy(tmp_path_factory.mktemp("trained") / "home")
    for stage in STAGES:
        home.run(stage)
    return home


@pytest.fixture
def home(trained: Home, tmp_path: Path) -> Home:
    """A copy of `trained` without the transformer's run."""
    return trained.copy(tmp_path / "home", "transformer")


class Killed(BaseException):
    """Raised to end a run as a kill would; no stage catches it."""


def interrupt(home, stage, step, monkeypatch, *settings):
    """Run a stage until it is killed in the middle of a step."""
    update = Ema.update

    def killing_update(ema, model, current_step):
        if current_step == step:
            raise Killed
        update(ema, model, current_step)

    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", killing_update)
        with pytest.raises(Killed):
            home.run(stage, *settings)


def wait_for_step(log, step, process):
    """Wait until a process has logged a step."""
    deadline = time.monotonic() + DEADLINE
    while not log.is_file() or not any(json.loads(line)["step"] >= step for line in whole_lines(log)):
        assert time.monotonic() < deadline
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ended with {process.wait(timeout=0.02)}")


def whole_lines(path):
    """The lines of a file that end with a newline; the last one may still be written."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def run_sharded(function, *arguments):
    """Call a function in this process as if it were the only process of an FSDP launch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch_environment = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # or accelerate would change the number of threads
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
    }
    with mock.patch.dict(os.environ, launch_environment):
        try:
            function(*arguments)
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()


def identity(home, part):
    """Identity of a part of the model."""
    return read_part(home.folder / "model", part).identity


def outcome(home, stage):
    """Every figure that a stage logged, and the identity of the weights it saved."""
    return home.log(stage), identity(home, stage)


def states(home):
    """Names of the transformer's resumable states."""
    return sorted(path.name for path in (home.folder / "transformer").glob("state*"))


def config_of(home, stage, *overrides):
    """A stage's config with overrides."""
    return load(RUNS[stage], home.folder / f"{stage}.yaml", overrides)


def cache_of(home, split):
    """A split of the token cache."""
    return open_cache(home.folder / "ids", split, identity(home, "image_tokenizer"))


class BatchMaker:
    """Makes the transformer's batches from a home's token cache, with overrides of its config."""

    def __init__(self, home, *overrides):
        self.config = config_of(home, "transformer", *overrides)
        self.cache = cache_of(home, "train")
        self.tokenizer = load_text_tokenizer(home.folder / "model")
        self.stream = Stream(load_transformer(home.folder / "model")[1])
        self.captions = CaptionSampler(self.cache.entries, {})
        self.parts = 4 if self.config.image_targets == "soft" else 2

    def make(self, step=3, rows=slice(0, 12)):
        """Inputs, targets and, if soft, likely ids and probabilities of some rows of one step's batch."""
        parts = (self.cache, self.captions, self.tokenizer, self.stream, self.config)
        return make_batch(*parts, step, rows, SceneRows(self.config.run.batch_size))[: self.parts]

    def make_many(self, steps=40):
        """Inputs and targets of several steps, concatenated."""
        inputs, targets = zip(*[self.make(step) for step in range(steps)], strict=True)
        return torch.cat(inputs), torch.cat(targets)
