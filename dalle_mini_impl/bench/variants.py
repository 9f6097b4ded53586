"""Variants of one training config, each trained on the same pictures for the same minutes."""

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
from dalle_mini_impl.config.yaml_io import from_dict, load, to_dict
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import write_json

TRAINER = "dalle_mini_impl.train.image_tokenizer"
EXTRA_MINUTES = 10
"""Time limit of a training process beyond twice its training minutes: start, decoding of data, last validation."""


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Contents of a file of variants, such as configs/compare/image_tokenizers.yaml."""

    base: str
    """Config of the image tokenizer stage that the variants change."""
    axes: tuple[dict[str, tuple[str, ...]], ...]
    """Names with `key=value` overrides, such as `vq: [model.quantizer=vq]`. Every combination of one name per axis is a
    variant, called by these names joined by `-`, without empty ones."""


@dataclass(frozen=True)
class Variant:
    """One training."""

    name: str
    folder: Path
    """Folder of everything that the training writes."""
    overrides: tuple[str, ...]
    """Changes of the base config."""
    arguments: tuple[str, ...]
    """Arguments of the training command."""
    config: ImageTokenizerRun
    """The resulting config."""

    @property
    def model(self) -> Path:
        """The checkpoint folder."""
        return self.folder / "model"


def read_variants(path: str | Path, minutes: float, out: str | Path) -> list[Variant]:
    """Read a file of variants and build the config of each, so that mistakes show before hours of training.

    Args:
        path: YAML file, see `Variants`.
        minutes: training time of each.
        out: folder with one folder for each variant.

    Raises:
        UserError: the file, a name or a setting is wrong.
    """
    spec = load(Variants, path)
    variants = []
    for choice in itertools.product(*(axis.items() for axis in spec.axes)):
        name = "-".join(label for label, _ in choice if label)
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{path}: variant {name!r}; expected letters, digits, '.', '_' and '-' in a variant's name")
        folder = Path(out) / name
        overrides = tuple(itertools.chain.from_iterable(lines for _, lines in choice))
        # Validations and samples would take part of the minutes.
        settings = (
            f"run.minutes={minutes}",
            f"run.model_dir={folder / 'model'}",
            f"run.state_dir={folder / 'state'}",
            "run.validate_every=1000000000",
            "run.sample_every=0",
        )
        config = load(ImageTokenizerRun, spec.base, [*overrides, *settings])
        variants.append(Variant(name, folder, overrides, ("--config", spec.base, *overrides, *settings), config))
    if len({variant.name for variant in variants}) < len(variants) or not variants:
        raise UserError(f"{path} gives {len(variants)} variants; expected at least one, and distinct names")
    return variants


def train(variant: Variant, progress: Callable[[float], Any]) -> dict[str, Any]:
    """Train a variant in a separate process, unless it was trained before with the same settings.

    Args:
        variant: what to train.
        progress: called every fraction of a second with the seconds since the last call.

    Returns:
        `steps` and `pictures_per_second` of the training; or `failed`, the reason why it failed.
    """
    done = variant.folder / "done.json"
    if done.is_file():
        record = json.loads(done.read_text(encoding="utf-8"))
        if _is_config(record["config"], variant.config):
            return record["training"]
    for path in (done, variant.model / "image_tokenizer.safetensors"):
        path.unlink(missing_ok=True)
    variant.folder.mkdir(parents=True, exist_ok=True)
    failed = _run([sys.executable, "-m", TRAINER, *variant.arguments], variant, progress)
    if failed:
        return {"failed": failed}
    lines = [json.loads(line) for line in (variant.folder / "state" / "log.jsonl").read_text().splitlines()]
    # The speed at the last training step, whose seconds do not include the last validation.
    last = next((line for line in reversed(lines) if "loss" in line), lines[-1])
    training = {"steps": last["step"] + 1, "pictures_per_second": last["pictures_per_second"]}
    write_json(done, {"config": to_dict(variant.config), "training": training})
    return training


def _is_config(values: Any, config: ImageTokenizerRun) -> bool:
    """Whether plain values, which may have old names of keys, are those of a config."""
    try:
        return from_dict(ImageTokenizerRun, values) == config
    except UserError:
        return False


def _run(command: list[str], variant: Variant, progress: Callable[[float], Any]) -> str:
    """Run a command with its output in `output.txt`; returns the reason if it failed, otherwise an empty string."""
    output = variant.folder / "output.txt"
    limit = 60 * (2 * variant.config.run.minutes + EXTRA_MINUTES)
    spent = 0.0
    last = time.monotonic()
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                seconds = min(now - last, 1)  # time in which the machine was suspended does not count
                spent += seconds
                last = now
                progress(seconds)
                if spent > limit:
                    return f"was still running after {limit / 60:.0f} minutes"
        finally:
            process.kill()
    if process.returncode == 0:
        return ""
    lines = re.split(r"[\r\n]+", output.read_text(encoding="utf-8", errors="replace").strip())
    return lines[-1] or f"ended with {process.returncode}"
