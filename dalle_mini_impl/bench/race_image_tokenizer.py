"""The learning race of image tokenizers: equal minutes on the same pictures, then reconstructing held-out ones."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.bench.race import HELD_OUT, SCHEDULE_STEPS, of_scenes, race_row, train_for
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.training import apply_gradients
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
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.optimizers import build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import batch_indices
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.util.errors import UserError

PEER_RATE, PEER_RATE_DECAY, PEER_BATCH = 1e-3, 0.98, 8
"""The peer's own training script: Adam's learning rate, its factor per period, and pictures per step."""
PEER_TEMPERATURE, PEER_LAST_TEMPERATURE, PEER_TEMPERATURE_DECAY = 1.0, 0.5, 1e-6
"""The same: first and last temperature of the Gumbel-softmax, and its rate of decay."""
PEER_PERIOD = 100
"""The same: steps after which rate and temperature change."""

PSNR_BATCH = 64

Side = tuple[Callable[[int, float], Any], Callable[[Tensor], Tensor]]
"""A training step (number, share of the time), and the reconstruction of pixels (B, 3, H, W)."""


def race(config_file: Path, minutes: float, device: str, checks: int = 8) -> Iterator[BenchRow]:
    """Train this package's image tokenizer and dalle-pytorch's `DiscreteVAE` of equal grid and codebook on one set.

    This package uses the settings of a training config, augmentation included, with the schedule stretched over the
    minutes; the peer uses the settings of its own script, without augmentation. Validation, on held-out pictures, does
    not count towards the minutes.

    Args:
        config_file: config of the image tokenizer stage; its data are used.
        minutes: training time of each.
        device: to train on.
        checks: validations, at equal distances.

    Raises:
        UserError: the `judge` extra is not installed.
    """
    config = load(ImageTokenizerRun, str(config_file), [])
    if not config.model.image_size:
        raise UserError(f"expected square pictures in {config_file}, as dalle-pytorch needs, got {config.model.size}")
    train = open_store(config.data, "train")
    validation = open_store(config.data, "validation")
    pictures = validation.take(np.arange(len(validation))[:HELD_OUT])
    held_out = pixels_on_white(pictures, config.model.size).to(device)
    curves = {}
    distances = {}
    distance = efficientnet_distance(device)
    for name, side in (("ours", own_side), ("dalle-pytorch", peer_side)):
        step, reconstruct = side(config, train, device)

        def mean_psnr(reconstruct: Callable[[Tensor], Tensor] = reconstruct) -> float:
            with torch.inference_mode():
                parts = held_out.split(PSNR_BATCH)
                return float(torch.cat([psnr(reconstruct(part), part) for part in parts]).mean())

        curves[name] = list(train_for(step, mean_psnr, minutes, checks))
        with torch.inference_mode():
            per_picture = [distance(reconstruct(part), part) for part in held_out.split(BATCH_SIZE)]
        distances[name] = float(torch.cat(per_picture).mean())
    yield race_row("learn/image-tokenizer", "dB" + of_scenes(config), curves, minutes, higher_is_better=True)
    note = f"perceptual distance (EfficientNet-Lite0) after {minutes:g} min"
    yield BenchRow(
        "learn/image-tokenizer/looks", distances["ours"], "dalle-pytorch", distances["dalle-pytorch"], note=note
    )


def own_side(config: ImageTokenizerRun, train: PictureStore, device: str) -> Side:
    """The step of the image tokenizer stage, without perceptual distance and GAN; EMA weights reconstruct."""
    model = ImageTokenizer(config.model, config.commitment).to(device)
    ema = Ema(model, config.run.ema)
    optimizers = build_optimizers(model, config.optimizer)
    scenes = SceneRows(config.run.batch_size)

    def step(number: int, share: float) -> None:
        model.train()
        schedule_step = config.optimizer.warmup_steps + int(share * SCHEDULE_STEPS)
        set_learning_rate(optimizers, schedule_step, SCHEDULE_STEPS, config.optimizer)
        target = batch_pixels(train, scenes, number, slice(0, config.run.batch_size), config).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            result = model(target)
        loss = reconstruction_loss(result.pixels, target, config.edge) + result.auxiliary
        apply_gradients(model, optimizers, loss, config.optimizer.clip)
        ema.update(model, number)

    def reconstruct(pixels: Tensor) -> Tensor:
        with ema.swapped_into(model):
            return model.decode(model.encode(pixels))

    return step, reconstruct


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
        if number and number % PEER_PERIOD == 0:
            temperature = max(temperature * math.exp(-PEER_TEMPERATURE_DECAY * number), PEER_LAST_TEMPERATURE)
            optimizer.param_groups[0]["lr"] *= PEER_RATE_DECAY
        indices = batch_indices(number, PEER_BATCH, len(train), config.run)
        pixels = pixels_on_white(train.take(indices), shape.size).to(device)
        loss = model((pixels + 1) / 2, return_loss=True, temp=temperature)
        apply_gradients(model, [optimizer], loss, clip=float("inf"))

    def reconstruct(pixels: Tensor) -> Tensor:
        # The peer encodes pixels in [0, 1] and decodes to [-1, 1].
        return model.eval().decode(model.get_codebook_indices((pixels + 1) / 2))

    return step, reconstruct
