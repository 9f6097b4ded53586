"""The five training commands that README had before there was one command for all stages, with their settings then.

They are what `bench/own.py` compares with, and stay as they were whatever becomes of `configs/small`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import UserError

AUGMENT = {
    "scale": [0.85, 1.0],
    "shift": 0.06,
    "flip": 0.0,
    "background": 0.25,
    "crop": False,
    "keep_inside": False,
}
"""Augmentation: a quarter of the pictures got a random background."""
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 3.0, "rank": "likelihood"}
"""How pictures were drawn; the scorer was not used."""
MUON = {"muon_learning_rate": 0.02, "warmup_steps": 50}
SETTINGS: dict[str, dict[str, Any]] = {
    "text-tokenizer": {"vocab_size": 2000},
    "image-tokenizer": {
        "model": {
            "image_size": 64,
            "factor": 8,
            "channels": [64, 192],
            "codebook_size": 512,
            "embed_dim": 16,
        },
        "augment": AUGMENT,
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01, **MUON},
        "run": {"steps": 800, "batch_size": 16, "ema": 0.995, "validate_every": 400, "sample_every": 400},
    },
    "encode": {"augment": AUGMENT, "variants": 16},
    "transformer": {
        "model": {"n_layer": 4, "n_head": 4, "n_embd": 128},
        "text_length": 24,
        "optimizer": {"learning_rate": 3e-3, "decay_start": 0.5, **MUON},
        "run": {"steps": 800, "batch_size": 32, "ema": 0.99, "validate_every": 200, "sample_every": 400},
        "sampling": SAMPLING,
    },
    "scorer": {
        "model": {"n_embd": 128, "image_layers": 2, "text_layers": 2, "embed_dim": 128},
        "augment": AUGMENT,
        "reconstructed_share": 0.25,
        "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.1, "betas": [0.9, 0.98], **MUON},
        "run": {"steps": 200, "batch_size": 64, "ema": 0.99, "validate_every": 200},
    },
}
"""Settings of each stage by the name of its command, in order, without folders."""
FIT = "crop"
"""Pictures were cropped to their middle square."""
SHOWN_LINES = 5
"""Lines of a failed command's output in the message."""


def configs(source: Path, validation: float, folder: Path, steps: int = 0) -> dict[str, dict[str, Any]]:
    """Whole settings of each stage.

    Args:
        source: the captioned pictures.
        validation: share of them that is held out.
        folder: for the model and all else.
        steps: of each stage, instead of the former number; 0 for that.
    """
    data = {"source": str(source), "store": str(folder / "store"), "validation": validation, "fit": FIT}
    model, text = str(folder / "model"), str(folder / "text_tokenizer.model")
    places: dict[str, dict[str, Any]] = {
        "text-tokenizer": {"data": data, "out": text},
        "image-tokenizer": {"data": data},
        "encode": {"data": data, "model_dir": model, "out": str(folder / "ids")},
        "transformer": {"cache": str(folder / "ids"), "text_tokenizer": text},
        "scorer": {"data": data, "text_tokenizer": text},
    }
    whole = {}
    for stage, settings in SETTINGS.items():
        whole[stage] = settings | places[stage]
        if "run" in settings:
            run = {"model_dir": model, "state_dir": str(folder / stage)} | ({"steps": steps} if steps else {})
            whole[stage]["run"] = settings["run"] | run
    return whole


def run_commands(source: Path, validation: float, folder: Path, steps: int = 0) -> Path:
    """Run the five commands; arguments as for `configs`.

    Returns:
        The folder of the model.

    Raises:
        UserError: one of them fails.
    """
    folder.mkdir(parents=True)
    for stage, settings in configs(source, validation, folder, steps).items():
        config = folder / f"{stage}.yaml"
        config.write_text(json.dumps(settings, indent=1), encoding="utf-8")  # JSON is YAML
        run_command(["train", stage, "--config", str(config)], folder / f"{stage}.log")
    return folder / "model"


def run_command(arguments: list[str], log: Path) -> None:
    """Run `dalle` in a process of its own, its output in a file.

    Raises:
        UserError: it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, "-m", "dalle_mini_impl", *arguments]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(
            f"expected `dalle {' '.join(arguments)}` to succeed, got exit code {code}: "
            f"{' / '.join(lines[-SHOWN_LINES:])}; see {log}"
        )
