"""Training race of the transformer: this package and dalle-pytorch on the same data for the same minutes."""

import time
from collections.abc import Callable, Iterator
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
from dalle_mini_impl.bench.training import finish
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache, open_cache, read_header
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.losses.image_targets import weighted
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.optimizers import build_optimizers, set_rate
from dalle_mini_impl.train.transformer import draw_batch
from dalle_mini_impl.util.errors import UserError

Progress = tuple[float, float]
"""Minutes of training, and what validation says after them."""

HELD_OUT = 256
SCHEDULE = 10_000
"""Ticks of the learning rate's schedule, which follows the clock."""
PEER_RATE, PEER_CLIP = 3e-4, 0.5
"""Adam's rate and gradient clipping in the peer's own training script."""


def race(config_file: Path, minutes: float, device: str, checks: int = 8, peer_batch: int = 16) -> Iterator[BenchRow]:
    """Train ours and dalle-pytorch's transformer of equal width, depth and heads on one token cache.

    Ours runs at the settings of a training config, its schedule stretched over the minutes. The peer runs at its
    script's learning rate. Validation does not count towards the minutes.

    Args:
        config_file: config of the transformer stage; its cache and text tokenizer are used.
        minutes: of training for each.
        device: to train on.
        checks: validations on the way.
        peer_batch: pictures per step of the peer, whose own default is 4.
    """
    config = load(TransformerRun, str(config_file), [])
    identity = read_header(Path(config.cache)).image_tokenizer
    train, held_out = (open_cache(config.cache, split, identity) for split in ("train", "validation"))
    tokenizer = TextTokenizer(config.text_tokenizer)
    h, w = train.header.grid
    if h != w:
        raise UserError(f"the token grid is {h}×{w}; dalle-pytorch supports square ones only")
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
        "ours": our_side(config, shape, train, tokenizer, device),
        "dalle-pytorch": peer_side(config, shape, train, tokenizer, device, peer_batch),
    }
    curves = {name: list(run(step, partial(nats, held_out), minutes, checks)) for name, (step, nats) in sides.items()}
    yield verdict("learn/transformer", "nats per image id", curves, minutes)


def verdict(
    name: str, unit: str, curves: dict[str, list[Progress]], minutes: float, higher_is_better: bool = False
) -> BenchRow:
    """The row of a race: the best of each side, and when ours came past the peer's best."""
    best = max if higher_is_better else min
    ours, theirs = (best(value for _, value in curves[side]) for side in ("ours", "dalle-pytorch"))
    ahead = next((minute for minute, value in curves["ours"] if best(value, theirs) == value), float("nan"))
    note = f"{unit}; the peer's best reached after {ahead:.2f} of {minutes:g} min"
    details = {"curves": curves, "minutes": minutes}
    return BenchRow(name, ours, "dalle-pytorch", theirs, note=note, higher_is_better=higher_is_better, details=details)


def run(
    step: Callable[[int, float], Any], validate: Callable[[], float], minutes: float, checks: int
) -> Iterator[Progress]:
    """Train for some minutes, validating `checks` times, evenly spread.

    Args:
        step: one training step, given its number and the share of the minutes that is over.
        validate: how good the model is, in whatever unit.
        minutes: of training.
        checks: validations.
    """
    spent, number = 0.0, 0
    for check in range(1, checks + 1):
        while spent < 60 * minutes * check / checks:
            start = time.perf_counter()
            step(number, spent / (60 * minutes))
            spent, number = spent + time.perf_counter() - start, number + 1
        yield spent / 60, validate()


def our_side(
    config: TransformerRun, shape: Shape, train: TokenCache, tokenizer: TextTokenizer, device: str
) -> tuple[Callable[[int, float], Tensor], Callable[[TokenCache], float]]:
    """A training step (number, share of the time) and validation of our transformer."""
    stream = shape.stream(tokenizer.bos_id)
    model = StreamLoss(shape.build(), stream).to(device)
    optimizers, captions = (
        build_optimizers(model, config.optimizer),
        CaptionSampler(train.entries, config.language_weights),
    )
    rows = slice(0, config.run.batch_size)

    def step(number: int, share: float) -> Tensor:
        set_rate(optimizers, config.optimizer.warmup_steps + int(share * SCHEDULE), SCHEDULE, config.optimizer)
        inputs, targets = draw_batch(train, captions, tokenizer, stream, config, number, rows)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            text, image = model(inputs.to(device), targets.to(device))
        return finish(model, optimizers, weighted(text, image, config.image_weight))

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
    """The same for dalle-pytorch; it sees the same captions and pictures, undisturbed."""
    peer = DallePytorch(shape, device)
    optimizer = torch.optim.Adam(peer.model.parameters(), lr=PEER_RATE)
    captions = CaptionSampler(train.entries, config.language_weights)

    def padded(texts: list[list[int]]) -> Tensor:
        rows = torch.zeros(len(texts), shape.text_length, dtype=torch.int64)  # its own padding id
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        return rows.to(device)

    def step(number: int, share: float) -> Tensor:
        random = np.random.default_rng([config.run.seed, number])
        numbers = loop.batch_indices(number, batch, len(train), config.run.seed)
        drawn = [captions.sample(int(index), random).text for index in numbers]
        texts = [tokenizer.encode(text)[: shape.text_length] for text in drawn]
        ids = train.image_ids[numbers, random.integers(train.image_ids.shape[1])].astype(np.int64)
        loss = peer.loss(padded(texts), torch.from_numpy(ids).flatten(1).to(device))
        return finish(peer.model, [optimizer], loss, PEER_CLIP)

    @torch.inference_mode()
    def nats(held_out: TokenCache) -> float:
        texts, image_ids = first_captions(held_out, tokenizer, shape.text_length)
        wanted = image_ids.flatten(1).to(device)
        logits = peer.model(padded(texts), wanted)[:, shape.text_length :, -shape.image_vocab :]
        return float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten()))

    return step, nats


def first_captions(cache: TokenCache, tokenizer: TextTokenizer, room: int) -> tuple[list[list[int]], Tensor]:
    """Text ids and image ids (n, h, w) of up to `HELD_OUT` pictures, each with its first caption."""
    texts = [tokenizer.encode(entry.captions[0].text)[:room] for entry in cache.entries[:HELD_OUT]]
    return texts, torch.from_numpy(np.asarray(cache.image_ids[:HELD_OUT, 0]).astype(np.int64))
