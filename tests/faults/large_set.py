"""A large set on a small machine: tars -> inspect -> encode -> train -> draw, killed on the way and continued.

    python tests/faults/large_set.py --pictures 200000 --out runs/large-set

Makes a set of tiny pictures in tars, and runs the commands that a user would run, each in its own process with one
thread. Encoding, training and drawing are done twice: undisturbed, and ended by SIGKILL half-way and continued. Image
ids, losses, weights and pictures must be the same. Prints how long each command took, and how much memory each of its
processes took at most, beyond a process that has only imported PyTorch. Ends with 1 if anything differs, or a process
takes more than `--memory`.
"""

import argparse
import filecmp
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image

from dalle_mini_impl.checkpoint.parts import read_part

ROOT = Path(__file__).parents[2]
PER_TAR = 1000
STORED = 5000
"""Pictures that text and image tokenizer learn from."""
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "pink", "orange", "brown", "grey")
THINGS = ("cloud", "field", "lake", "wall", "leaf", "stone", "flag", "night", "sand", "carpet")
LOOK_SECONDS = 0.05
"""Interval at which the memory of processes is looked at; Linux keeps each one's peak meanwhile."""
TIMINGS = ("seconds", "pictures_per_second")
STAGES = ("text_tokenizer", "image_tokenizer", "encode", "transformer")


@dataclass
class Row:
    """What a command took."""

    name: str
    seconds: float = 0.0
    process: int = 0
    """The command's own."""
    peaks: dict[int, int] = field(default_factory=dict)
    """It and those that it started -> largest number of bytes that each had in memory."""


def main() -> None:
    """Run everything, and print the table."""
    options = parsed_options()
    out = options.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows: list[Row] = []
    beyond = memory_of_pytorch()
    start = time.monotonic()
    write_set(out / "set", options.pictures)
    print(f"{options.pictures:,} pictures in tars: {time.monotonic() - start:.0f} s", flush=True)
    write_configs(out, options)
    run = Runner(out, rows)
    run("inspect", ["data", "inspect", str(out / "set"), "--size", "32", "--sheet", str(out / "set.png")])
    run("text tokenizer", train("text-tokenizer", out / "text_tokenizer.yaml"))
    run("image tokenizer", train("image-tokenizer", out / "image_tokenizer.yaml"))
    failures = [
        *encode(run, out, options.pictures // 1024 // 2),
        *train_transformer(run, out, options.steps // 2),
        *draw(run, out, options.prompts),
    ]
    largest = max(peak for row in rows for peak in row.peaks.values()) - beyond
    print(table(rows, beyond))
    if largest > options.memory * 2**20:
        failures.append(f"a process took {largest / 2**20:.0f} MiB, expected at most {options.memory}")
    print("\n".join(failures) or "killed and continued: same ids, losses, weights and pictures")
    sys.exit(bool(failures))


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=200, help="of training the transformer")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1, help="that read ahead, beside each stage")
    parser.add_argument("--memory", type=int, default=1024, help="most MiB of a process, beyond PyTorch")
    parser.add_argument("--out", type=Path, required=True, help="a folder, which is emptied first")
    return parser.parse_args()


def write_set(folder: Path, count: int) -> None:
    """Write pictures of blurred spots in one colour, as JPEG in tars, each with a caption."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for first in range(0, count, PER_TAR):
        with tarfile.open(folder / f"{first // PER_TAR:05d}.tar", "w") as archive:
            for number in range(first, min(first + PER_TAR, count)):
                thing, colour = random.integers(len(THINGS)), random.integers(len(COLOURS))
                spots = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(spots).resize((40, 32), Image.Resampling.BILINEAR).save(buffer, "JPEG")
                caption = (
                    f"a {COLOURS[colour]} {THINGS[thing]} near {COLOURS[colour - 1]} {THINGS[thing - 3]} {number % 97}"
                )
                for ending, content in (("jpg", buffer.getvalue()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def write_configs(out: Path, options: argparse.Namespace) -> None:
    """Settings of a tiny model."""
    source = str(out / "set")
    sample = {"source": source, "store": str(out / "store"), "store_size": 64}
    sample |= {"every": max(1, options.pictures // STORED)}
    run = {"model_dir": str(out / "model"), "precision": "fp32", "sample_every": 0, "log_every": 10}
    values: dict[str, Any] = {
        "text_tokenizer": {"data": sample, "out": str(out / "text.model"), "vocab_size": 400},
        "image_tokenizer": {
            "model": {"image_size": 32, "factor": 8, "channels": [16, 32], "decoder_blocks": 1, "codebook_size": 64},
            "data": sample,
            "run": {**run, "state_dir": str(out / "image_tokenizer"), "steps": 60, "batch_size": 32},
        },
        "encode": {
            "data": {"source": source},
            "model_dir": str(out / "model"),
            "variants": 1,
            "precision": "fp32",
            "workers": options.workers,
        },
        "transformer": {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 64},
            "cache": str(out / "ids"),
            "text_tokenizer": str(out / "text.model"),
            "text_length": 24,
            "run": {
                **run,
                "steps": options.steps,
                "batch_size": 64,
                "save_every": max(1, options.steps // 5),
                "validate_every": max(1, options.steps // 2),
                "workers": options.workers,
            },
        },
    }
    for stage in STAGES:
        (out / f"{stage}.yaml").write_text(yaml.safe_dump(values[stage]))


def train(stage: str, config: Path, *settings: str) -> list[str]:
    """The arguments of a training stage."""
    return ["train", stage, "--config", str(config), *settings]


@dataclass
class Runner:
    """Runs commands one after another, and notes what each took."""

    out: Path
    rows: list[Row]

    def __call__(self, name: str, arguments: list[str], kill_when: Callable[[], bool] | None = None) -> None:
        """Run a command to its end, or until a condition holds, and then end it by SIGKILL."""
        row = Row(name)
        self.rows.append(row)
        start = time.monotonic()
        with (self.out / "output.log").open("a") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "dalle_mini_impl", *arguments],
                stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            row.process = process.pid
            killed = False
            while process.poll() is None:
                self._look(process, row)
                if kill_when and not killed and kill_when():
                    process.kill()
                    killed = True
                time.sleep(LOOK_SECONDS)
        row.seconds = time.monotonic() - start
        code = process.wait()
        if code != (-9 if kill_when else 0):
            tail = "\n".join((self.out / "output.log").read_text(errors="replace").splitlines()[-20:])
            sys.exit(f"{name} ended with {code}, expected {-9 if kill_when else 0}\n{tail}")
        print(f"{name}: {row.seconds:.0f} s", flush=True)

    def _look(self, process: psutil.Popen, row: Row) -> None:
        try:
            for one in (process, *process.children(recursive=True)):
                row.peaks[one.pid] = max(row.peaks.get(one.pid, 0), peak_of(one.pid))
        except (psutil.Error, OSError, ValueError):  # it has ended meanwhile
            return


def peak_of(process: int) -> int:
    """Largest number of bytes that a process had in memory so far, files mapped into it included."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def memory_of_pytorch() -> int:
    """The peak of a process that has imported PyTorch and nothing else."""
    code = "import torch; print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    return 1024 * int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def encode(run: Runner, out: Path, blocks: int) -> Iterator[str]:
    """Encode undisturbed, and killed; yields what differs."""
    config = out / "encode.yaml"
    run("encode", train("encode", config, f"out={out}/ids"))

    def half_done() -> bool:
        return len([*(out / "again.blocks").glob("*.npz")]) >= max(1, blocks)

    run("encode, killed", train("encode", config, f"out={out}/again"), half_done)
    run("encode, continued", train("encode", config, f"out={out}/again"))
    yield from differences(out / "ids", out / "again", "verified.json")


def train_transformer(run: Runner, out: Path, steps: int) -> Iterator[str]:
    """Train undisturbed, and killed; yields what differs."""
    config = out / "transformer.yaml"
    again = [f"run.model_dir={out}/again-model", f"run.state_dir={out}/again-transformer"]
    shutil.copytree(out / "model", out / "again-model")
    run("transformer", train("transformer", config, f"run.state_dir={out}/transformer"))

    def half_done() -> bool:
        path = out / "again-transformer" / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return bool(lines) and json.loads(lines[-1])["step"] >= steps

    run("transformer, killed", train("transformer", config, *again), half_done)
    run("transformer, continued", train("transformer", config, *again, "--resume"))
    if losses(out / "transformer") != losses(out / "again-transformer"):
        yield "losses differ"
    if len({read_part(out / model, "transformer").identity for model in ("model", "again-model")}) > 1:
        yield "weights differ"


def losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMINGS} for line in lines]


def draw(run: Runner, out: Path, count: int) -> Iterator[str]:
    """Draw pictures undisturbed, and killed; yields what differs."""
    prompts = out / "prompts.txt"
    prompts.write_text("".join(f"a {COLOURS[n % 10]} {THINGS[n // 10 % 10]} {n}\n" for n in range(count)))

    def command(folder: str) -> list[str]:
        fixed = ["--candidates", "1", "--keep", "1", "--rank", "none", "--seed", "1", "--no-grid"]
        return ["sample", "--model", f"{out}/model", "--prompts-file", str(prompts), *fixed, "--save-dir", folder]

    def half_done() -> bool:
        return len([*(out / "again-pictures").rglob("*.png")]) >= count // 2

    run("draw", command(f"{out}/pictures"))
    run("draw, killed", command(f"{out}/again-pictures"), half_done)
    run("draw, continued", command(f"{out}/again-pictures"))
    if (drawn := len([*(out / "pictures").rglob("*.png")])) != count:
        yield f"{drawn} pictures were drawn of {count} prompts"
    yield from differences(out / "pictures", out / "again-pictures")


def differences(one: Path, other: Path, *without: str) -> Iterator[str]:
    """The files of two folders that differ, or are in one of them alone."""
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names):
        if name.name in without:
            continue
        pair = one / name, other / name
        if not all(path.exists() for path in pair) or not filecmp.cmp(*pair, shallow=False):
            yield f"{pair[0]} and {pair[1]} differ"


def table(rows: list[Row], beyond: int) -> str:
    """A line for each command: seconds, and the peak of its main process and of the largest other one."""
    lines = [f"a process that has imported PyTorch: {beyond / 2**20:.0f} MiB; beyond that:"]
    for row in rows:
        own = row.peaks.pop(row.process) - beyond
        others = f", another {(max(row.peaks.values()) - beyond) / 2**20:4.0f} MiB" if row.peaks else ""
        lines.append(f"  {row.name:24s}{row.seconds:6.0f} s   {own / 2**20:4.0f} MiB{others}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
