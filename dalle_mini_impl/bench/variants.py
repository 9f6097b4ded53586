"""Variants of one training: the same pictures and the same minutes for each, so that what differs is what they are."""

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.config.yaml_io import load, to_dict
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import write_json

TRAINER = "dalle_mini_impl.train.image_tokenizer"
SPARE = 10
"""Minutes a process may take on top of twice its training: start, data, the last validation."""


@dataclass(frozen=True, kw_only=True)
class Variants:
    """What a file of variants says."""

    base: str
    """Config of the image tokenizer stage that all variants start from."""
    axes: tuple[dict[str, tuple[str, ...]], ...]
    """Names with `key=value` overrides, such as `vq: [model.quantizer=vq]`. Every name of the first axis is combined
    with every name of the second, and so on; an empty name leaves no trace in the variant's."""


@dataclass(frozen=True)
class Variant:
    """One training to be done."""

    name: str
    folder: Path
    """Where all of it is kept."""
    overrides: tuple[str, ...]
    """What makes it a variant."""
    arguments: tuple[str, ...]
    """What the trainer is called with."""
    config: ImageTokenizerRun

    @property
    def model(self) -> Path:
        """Its checkpoint folder."""
        return self.folder / "model"


def read_variants(path: str | Path, minutes: float, out: str | Path) -> list[Variant]:
    """The variants of a file, each with its whole config, so that a slip shows before hours of training.

    Args:
        path: YAML file, see `Variants`.
        minutes: of training for each.
        out: a folder in this folder for each.

    Raises:
        UserError: the file, a name or a setting is wrong.
    """
    spec = load(Variants, path)
    found = []
    for choice in itertools.product(*(axis.items() for axis in spec.axes)):
        name = "-".join(label for label, _ in choice if label)
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{path}: variant {name!r}; expected letters, digits, '.', '_' and '-' in a variant's name")
        folder = Path(out) / name
        overrides = tuple(itertools.chain.from_iterable(lines for _, lines in choice))
        # Next to nothing but training should take of its minutes.
        settings = (
            f"run.minutes={minutes}",
            f"run.model_dir={folder / 'model'}",
            f"run.state_dir={folder / 'state'}",
            "run.validate_every=1000000000",
            "run.sample_every=0",
        )
        config = load(ImageTokenizerRun, spec.base, [*overrides, *settings])
        found.append(Variant(name, folder, overrides, ("--config", spec.base, *overrides, *settings), config))
    if len({variant.name for variant in found}) < len(found) or not found:
        raise UserError(f"{path} gives {len(found)} variants; expected at least one, and names that differ")
    return found


def train(variant: Variant, tick: Callable[[float], Any]) -> dict[str, Any]:
    """Train a variant in a process of its own, unless that has been done with the same settings.

    Args:
        variant: what to train.
        tick: told once in a while how many seconds have passed since.

    Returns:
        `steps` and `pictures_per_second` of the training; or `failed`, why there is none.
    """
    done = variant.folder / "done.json"
    if done.is_file():
        facts = json.loads(done.read_text(encoding="utf-8"))
        if facts["config"] == to_dict(variant.config):
            return facts["training"]
    for path in (done, variant.model / "image_tokenizer.safetensors"):
        path.unlink(missing_ok=True)
    variant.folder.mkdir(parents=True, exist_ok=True)
    failed = _run([sys.executable, "-m", TRAINER, *variant.arguments], variant, tick)
    if failed:
        return {"failed": failed}
    lines = [json.loads(line) for line in (variant.folder / "state" / "log.jsonl").read_text().splitlines()]
    last = next((line for line in reversed(lines) if "loss" in line), lines[-1])  # without validation's seconds
    training = {"steps": last["step"] + 1, "pictures_per_second": last["pictures_per_second"]}
    write_json(done, {"config": to_dict(variant.config), "training": training})
    return training


def _run(command: list[str], variant: Variant, tick: Callable[[float], Any]) -> str:
    """Run a command to its end and give the reason if it failed; what it prints goes to `output.txt`."""
    output, limit = variant.folder / "output.txt", 60 * (2 * variant.config.run.minutes + SPARE)
    spent, last = 0.0, time.monotonic()
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                seconds = min(now - last, 1)  # a machine that slept took no time
                spent, last = spent + seconds, now
                tick(seconds)
                if spent > limit:
                    return f"was still running after {limit / 60:.0f} minutes"
        finally:
            process.kill()
    if process.returncode == 0:
        return ""
    lines = re.split(r"[\r\n]+", output.read_text(encoding="utf-8", errors="replace").strip())
    return lines[-1] or f"ended with {process.returncode}"
