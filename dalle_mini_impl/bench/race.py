"""The learning race of transformers: training for equal minutes on the same pictures, compared on held-out ones."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.bench.peers import DallePytorch
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.shapes import Shape
from dalle_mini_impl.bench.timing import progress_bar
from dalle_mini_impl.bench.training import apply_gradients
from dalle_mini_impl.config.training import ImageTokenizerRun, TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache, open_cache, read_header
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.losses.stream import StreamLoss, weighted_loss
from dalle_mini_impl.train.shared.optimizers import build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import batch_indices
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.stream_batch import make_batch, to_device
from dalle_mini_impl.util.errors import UserError

CurvePoint = tuple[float, float]
"""Minutes of training, and the validation figure after them."""

HELD_OUT = 256
"""Held-out pictures in a validation."""
SCHEDULE_STEPS = 10_000
"""Steps of the learning-rate schedule, which follows the clock."""
PEER_RATE, PEER_CLIP = 3e-4, 0.5
"""Adam's learning rate and gradient clipping in the peer's own training script."""


def race(config_file: Path, minutes: float, device: str, checks: int = 8, peer_batch: int = 16) -> Iterator[BenchRow]:
    """Train this package's and dalle-pytorch's transformer of equal width, depth and heads on one token cache.

    This package uses the settings of a training config, with the schedule stretched over the minutes. The peer uses the
    learning rate of its own script. Validation does not count towards the minutes.

    Args:
        config_file: config of the transformer stage; its cache and text tokenizer are used.
        minutes: training time of each.
        device: to train on.
        checks: validations, at equal distances.
        peer_batch: pictures per step of the peer, whose own default is 4.

    Raises:
        UserError: config or cache cannot be read, or the token grid is not square.
    """
    # Only what both sides have.
    config = replace(load(TransformerRun, str(config_file), []), augmented_share=0.0, random_order=(0.0, 0.0))
    identity = read_header(Path(config.cache)).image_tokenizer
    train = open_cache(config.cache, "train", identity)
    held_out = open_cache(config.cache, "validation", identity)
    tokenizer = TextTokenizer(config.text_tokenizer)
    h, w = train.header.grid
    if h != w:
        raise UserError(
            f"the token grid is {h}×{w}, expected a square one, as dalle-pytorch needs; use square pictures"
        )
    shape = Shape(
        "race",
        config.model.n_embd,
        config.model.n_layer,
        config.model.n_head,
        config.text_length,
        h,
        train.header.codebook_size,
        tokenizer.vocab_size,
        config.run.batch_size,
    )
    sides = {
        "ours": own_side(config, shape, train, tokenizer, device),
        "dalle-pytorch": peer_side(config, shape, train, tokenizer, device, peer_batch),
    }
    curves = {
        name: list(train_for(step, partial(nats, held_out), minutes, checks)) for name, (step, nats) in sides.items()
    }
    yield race_row("learn/transformer", "nats per image id" + of_scenes(config), curves, minutes)


def of_scenes(config: TransformerRun | ImageTokenizerRun) -> str:
    """What the row of a race says where its config has scenes, of which the peer knows nothing."""
    return " of stored pictures, without the config's scenes" if config.scenes.store else ""


def race_row(
    name: str, unit: str, curves: dict[str, list[CurvePoint]], minutes: float, higher_is_better: bool = False
) -> BenchRow:
    """The row of a race: the best figure of each side, and when this package first reached the peer's best.

    Args:
        name: of the row.
        unit: of the figures.
        curves: validation figures of the sides `ours` and `dalle-pytorch`.
        minutes: training time of each side.
        higher_is_better: whether a higher figure is a better one.
    """
    best = max if higher_is_better else min
    ours, theirs = (best(value for _, value in curves[side]) for side in ("ours", "dalle-pytorch"))
    ahead = next((minute for minute, value in curves["ours"] if best(value, theirs) == value), float("nan"))
    note = f"{unit}; the peer's best reached after {ahead:.2f} of {minutes:g} min"
    details = {"curves": curves, "minutes": minutes}
    return BenchRow(name, ours, "dalle-pytorch", theirs, note=note, higher_is_better=higher_is_better, details=details)


def train_for(
    step: Callable[[int, float], Any], validate: Callable[[], float], minutes: float, checks: int
) -> Iterator[CurvePoint]:
    """Train for some minutes and validate `checks` times at equal distances.

    Args:
        step: makes one training step, given its number and the share of the minutes that is over.
        validate: measures the model.
        minutes: training time, without validations.
        checks: validations.
    """
    seconds = 0.0
    number = 0
    layout = "{l_bar}{bar}| {n:.0f} of {total} s"
    with progress_bar(round(60 * minutes), "training", bar_format=layout) as bar:
        for check in range(1, checks + 1):
            while seconds < 60 * minutes * check / checks:
                start = time.perf_counter()
                step(number, seconds / (60 * minutes))
                step_seconds = time.perf_counter() - start
                seconds += step_seconds
                number += 1
                bar.update(step_seconds)
            yield seconds / 60, validate()


def own_side(
    config: TransformerRun, shape: Shape, train: TokenCache, tokenizer: TextTokenizer, device: str
) -> tuple[Callable[[int, float], Tensor], Callable[[TokenCache], float]]:
    """A training step (number, share of the time) of this package's transformer, and its validation."""
    stream = shape.stream(tokenizer.bos_id)
    model = StreamLoss(shape.build(), stream).to(device)
    optimizers = build_optimizers(model, config.optimizer)
    captions = CaptionSampler(train.entries, config.language_weights)
    rows = slice(0, config.run.batch_size)

    def step(number: int, share: float) -> Tensor:
        schedule_step = config.optimizer.warmup_steps + int(share * SCHEDULE_STEPS)
        set_learning_rate(optimizers, schedule_step, SCHEDULE_STEPS, config.optimizer)
        made = make_batch(train, captions, tokenizer, stream, config, number, rows, SceneRows(config.run.batch_size))
        batch = to_device(made, torch.device(device))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            text, image = model(batch.inputs, batch.targets, batch.likely_ids, batch.probabilities)
        return apply_gradients(model, optimizers, weighted_loss(text, image, config.image_weight))

    @torch.inference_mode()
    def nats(held_out: TokenCache) -> float:
        texts, image_ids = first_captions(held_out, tokenizer, config.text_length)
        ids = stream.join(stream.prefix(texts), image_ids).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return float(model(ids[:, :-1], ids[:, 1:])[1])

    return step, nats


def peer_side(
    config: TransformerRun, shape: Shape, train: TokenCache, tokenizer: TextTokenizer, device: str, batch: int
) -> tuple[Callable[[int, float], Tensor], Callable[[TokenCache], float]]:
    """The same for dalle-pytorch, with the same captions and pictures, not corrupted."""
    peer = DallePytorch(shape, device)
    optimizer = torch.optim.Adam(peer.model.parameters(), lr=PEER_RATE)
    captions = CaptionSampler(train.entries, config.language_weights)

    def padded(texts: list[list[int]]) -> Tensor:
        rows = torch.zeros(len(texts), shape.text_length, dtype=torch.int64)  # 0 is the peer's padding id
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        return rows.to(device)

    def step(number: int, share: float) -> Tensor:
        random = np.random.default_rng([config.run.seed, number])
        indices = batch_indices(number, batch, len(train), config.run)
        sampled = [captions.sample(int(index), random).text for index in indices]
        texts = [tokenizer.encode(text)[: shape.text_length] for text in sampled]
        ids = train.image_ids[indices, random.integers(train.image_ids.shape[1])].astype(np.int64)
        loss = peer.loss(padded(texts), torch.from_numpy(ids).flatten(1).to(device))
        return apply_gradients(peer.model, [optimizer], loss, PEER_CLIP)

    @torch.inference_mode()
    def nats(held_out: TokenCache) -> float:
        texts, image_ids = first_captions(held_out, tokenizer, shape.text_length)
        targets = image_ids.flatten(1).to(device)
        logits = peer.model(padded(texts), targets)[:, shape.text_length :, -shape.image_vocab :]
        return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))

    return step, nats


def first_captions(cache: TokenCache, tokenizer: TextTokenizer, length: int) -> tuple[list[list[int]], Tensor]:
    """Text ids, cut to a length, of the first caption, and image ids (n, h, w) of up to `HELD_OUT` pictures."""
    texts = [tokenizer.encode(entry.captions[0].text)[:length] for entry in cache.entries[:HELD_OUT]]
    return texts, torch.from_numpy(np.asarray(cache.image_ids[:HELD_OUT, 0]).astype(np.int64))
