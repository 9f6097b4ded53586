"""Training race of the image tokenizer: this package and dalle-pytorch on the same data for the same minutes."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.bench.race import HELD_OUT, SCHEDULE, run, verdict
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.training import finish
from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.evaluate.judges import BATCH_SIZE
from dalle_mini_impl.evaluate.metrics import psnr
from dalle_mini_impl.evaluate.perceptual import efficientnet_distance
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.train.image_tokenizer import batch_pixels
from dalle_mini_impl.train.losses.pictures import reconstruction_loss
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.optimizers import build_optimizers, set_rate

PEER_RATE, PEER_DECAY, PEER_BATCH = 1e-3, 0.98, 8
"""Adam's rate, its factor every `PEER_EVERY` steps, and pictures per step in the peer's own training script."""
PEER_TEMPERATURE, PEER_COLDEST, PEER_COOLING = 1.0, 0.5, 1e-6
"""Gumbel-softmax temperature there: at first, at last, and what cools it every `PEER_EVERY` steps."""
PEER_EVERY = 100

Side = tuple[Callable[[int, float], Any], Callable[[Tensor], Tensor]]
"""A training step (number, share of the time), and pictures (B, 3, H, W) -> ids -> pictures."""


def race(config_file: Path, minutes: float, device: str, checks: int = 8) -> Iterator[BenchRow]:
    """Train our image tokenizer and dalle-pytorch's `DiscreteVAE` of the same grid and codebook on one set.

    Ours runs at the settings of a training config, its schedule stretched over the minutes, and sees pictures augmented
    as that says; the peer runs at the settings of its own script and sees them as they are. Validation, on held-out
    pictures, does not count towards the minutes.

    Args:
        config_file: config of the image tokenizer stage; its data are used.
        minutes: of training for each.
        device: to train on.
        checks: validations on the way.

    Raises:
        UserError: the `judge` extra is not installed.
    """
    config = load(ImageTokenizerRun, str(config_file), [])
    train, validation = (open_store(config.data, split) for split in ("train", "validation"))
    pictures = validation.take(np.arange(len(validation))[:HELD_OUT])
    held_out = pixels_on_white(pictures, config.model.image_size).to(device)
    curves, apart, distance = {}, {}, efficientnet_distance(device)
    for name, side in (("ours", our_side), ("dalle-pytorch", peer_side)):
        step, copy = side(config, train, device)

        def quality(copy: Callable[[Tensor], Tensor] = copy) -> float:
            with torch.inference_mode():
                return float(torch.cat([psnr(copy(part), part) for part in held_out.split(64)]).mean())

        curves[name] = list(run(step, quality, minutes, checks))
        with torch.inference_mode():
            parts = [distance(copy(part), part) for part in held_out.split(BATCH_SIZE)]
        apart[name] = float(torch.cat(parts).mean())
    yield verdict("learn/image-tokenizer", "dB", curves, minutes, higher_is_better=True)
    note = f"perceptual distance (EfficientNet-Lite0) after {minutes:g} min"
    yield BenchRow("learn/image-tokenizer/looks", apart["ours"], "dalle-pytorch", apart["dalle-pytorch"], note=note)


def our_side(config: ImageTokenizerRun, train: PictureStore, device: str) -> Side:
    """A training step of this package, EMA included."""
    model = ImageTokenizer(config.model, config.commitment).to(device)
    average = Ema(model, config.run.ema)
    optimizers = build_optimizers(model, config.optimizer)

    def step(number: int, share: float) -> None:
        model.train()
        set_rate(optimizers, config.optimizer.warmup_steps + int(share * SCHEDULE), SCHEDULE, config.optimizer)
        target = batch_pixels(train, number, slice(0, config.run.batch_size), config).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            result = model(target)
        loss = reconstruction_loss(result.pixels, target, config.edge) + result.auxiliary
        finish(model, optimizers, loss, config.optimizer.clip)
        average.update(model, number)

    def copy(pixels: Tensor) -> Tensor:
        with average.swapped_into(model):
            return model.decode(model.encode(pixels))

    return step, copy


def peer_side(config: ImageTokenizerRun, train: PictureStore, device: str) -> Side:
    """The same for dalle-pytorch's `DiscreteVAE`, in the sizes of its own training script."""
    shape = config.model
    model = (
        import_dalle_pytorch()
        .DiscreteVAE(
            image_size=shape.image_size,
            num_layers=shape.factor.bit_length() - 1,
            num_tokens=shape.codebook_size,
            codebook_dim=512,
            hidden_dim=256,
            num_resnet_blocks=2,
        )
        .to(device)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=PEER_RATE)
    temperature = PEER_TEMPERATURE

    def step(number: int, share: float) -> None:
        nonlocal temperature
        model.train()
        if number and number % PEER_EVERY == 0:
            temperature = max(temperature * math.exp(-PEER_COOLING * number), PEER_COLDEST)
            optimizer.param_groups[0]["lr"] *= PEER_DECAY
        wanted = loop.batch_indices(number, PEER_BATCH, len(train), config.run.seed)
        pixels = pixels_on_white(train.take(wanted), shape.image_size).to(device)
        finish(model, [optimizer], model((pixels + 1) / 2, return_loss=True, temp=temperature), clip=float("inf"))

    def copy(pixels: Tensor) -> Tensor:
        # It takes pixels from 0 to 1 and gives them normalised to -1 to 1, as its loss wants them.
        return model.eval().decode(model.get_codebook_indices((pixels + 1) / 2))

    return step, copy
