"""Rows of the other parts: image tokenizer, scorer, text tokenizer, and the start-up of commands."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.timing import median_seconds, progress_bar
from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train.losses.pictures import reconstruction_loss

PICTURES = 64
"""Per batch."""
CAPTIONS = ("a red heart", "ein lachendes Gesicht mit Sonnenbrille", "en hund", "punane süda, keel", "三毛猫") * 200
"""Captions to tokenize, in five languages."""
STARTUP_STAGES = (
    ("python", "pass"),
    ("torch", "import torch"),
    ("the package", "import dalle_mini_impl.pipeline.dalle_mini"),
    ("the model", "from dalle_mini_impl.pipeline.dalle_mini import DalleMini; DalleMini.from_pretrained('emoji')"),
)
"""Name and code of each stage of a command's start-up; each contains the stages before it."""


def image_tokenizer_rows(machine: MachineSpeed, with_peer: bool, repeats: int) -> Iterator[BenchRow]:
    """Time encoding, decoding and training of the shipped image tokenizer.

    Args:
        machine: its device is used.
        with_peer: also measure dalle-pytorch's `DiscreteVAE` of the same token grid and codebook size.
        repeats: rounds of which the median counts.
    """
    device = machine.device
    tokenizer = ImageTokenizer.from_pretrained("emoji", device)
    size = tokenizer.config.image_size
    pixels = torch.rand(PICTURES, 3, size, size, device=device) * 2 - 1
    ids = tokenizer.encode(pixels)
    runs: dict[str, dict[str, Callable[[], Any]]] = {
        "encode": {"ours": lambda: _encode(tokenizer, pixels)},
        "decode": {"ours": lambda: tokenizer.decode(ids)},
        "train/image-tokenizer": {"ours": _training_step(tokenizer, pixels)},
    }
    if with_peer:
        vae = import_dalle_pytorch().DiscreteVAE(
            image_size=size,
            num_layers=tokenizer.config.factor.bit_length() - 1,
            num_tokens=tokenizer.codebook_size,
            codebook_dim=512,  # this and the next two as in its own training script
            hidden_dim=256,
            num_resnet_blocks=2,
        )
        vae.to(device)
        runs["encode"]["dalle-pytorch"] = lambda: vae.get_codebook_indices(pixels)
        runs["decode"]["dalle-pytorch"] = lambda: vae.decode(ids.flatten(1))
        runs["train/image-tokenizer"]["dalle-pytorch"] = lambda: vae(pixels, return_loss=True).backward()
    for name, pair in runs.items():
        with torch.set_grad_enabled(name.startswith("train")):
            seconds = median_seconds(pair, device, repeats)
        peer = "dalle-pytorch" if with_peer else ""
        note = f"{PICTURES / seconds['ours']:.0f} pictures/s"
        yield BenchRow(
            name, seconds["ours"], peer, seconds.get(peer, torch.nan), note=note, details={"pictures": PICTURES}
        )


def _encode(tokenizer: ImageTokenizer, pixels: torch.Tensor) -> torch.Tensor:
    """Encode in bf16, as the training stage `encode` does."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return tokenizer.encode(pixels)


def _training_step(tokenizer: ImageTokenizer, pixels: torch.Tensor) -> Callable[[], None]:
    """A function that runs the forward and backward pass of an untrained image tokenizer of the same shape."""
    run = ImageTokenizerRun(model=tokenizer.config)
    untrained = ImageTokenizer(run.model, run.commitment).to(pixels.device).train()

    def step() -> None:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            result = untrained(pixels)
        (reconstruction_loss(result.pixels, pixels, run.edge) + result.auxiliary).backward()
        untrained.zero_grad()

    return step


def scorer_rows(machine: MachineSpeed, repeats: int) -> Iterator[BenchRow]:
    """Time scoring pictures with the shipped scorer, and tokenizing captions."""
    scorer = Scorer.from_pretrained("emoji", machine.device)
    size = scorer.image_size
    pixels = torch.rand(PICTURES, 3, size, size) * 2 - 1
    tokenizer = load_text_tokenizer("emoji")
    seconds = median_seconds(
        {
            "score": lambda: scorer.score(pixels, "a red heart"),
            "text-tokenizer": lambda: [tokenizer.encode(text) for text in CAPTIONS],
        },
        machine.device,
        repeats,
    )
    yield BenchRow("score", seconds["score"], note=f"{PICTURES / seconds['score']:.0f} pairs/s")
    per_second = len(CAPTIONS) / seconds["text-tokenizer"]
    yield BenchRow("text-tokenizer", seconds["text-tokenizer"], note=f"{per_second:.0f} captions/s")


def startup_rows(device: str, repeats: int) -> Iterator[BenchRow]:
    """Time commands in a fresh process, and the stages of their start-up."""
    with tempfile.TemporaryDirectory() as folder:
        grid = str(Path(folder) / "grid.png")
        commands = {
            "startup/help": ["-m", "dalle_mini_impl", "--help"],
            "startup/sample": ["-m", "dalle_mini_impl", "sample", "a red heart", "--out", grid, "--device", device],
        }
        for name, command in commands.items():
            yield BenchRow(name, _fresh_process_seconds(command, repeats, name))
    previous = 0.0
    for name, code in STARTUP_STAGES:
        row = f"startup/of which {name}"
        seconds = _fresh_process_seconds(["-c", code], repeats, row)
        yield BenchRow(row, max(seconds - previous, 0.0))
        previous = seconds


def _fresh_process_seconds(arguments: list[str], repeats: int, name: str) -> float:
    """Median seconds of a fresh Python process, after one that loads the files into the system's cache."""
    seconds = []
    with progress_bar(1 + repeats, f"timing {name}", unit=" runs") as bar:
        for _ in range(1 + repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
            bar.update()
    return median(seconds[1:])
