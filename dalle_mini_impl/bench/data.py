"""Rows of the way of pictures into a training: a set in tars is inspected, stored and encoded, captions split, batches
made.

Beside the transformer's batches and captions stand those of version 0.1: made in the trainer when they are needed, in
an order that permutes the whole set for each batch, of captions that are Python objects, which BPE dropout splits in
quadratic time. Beside the image tokenizer's batches of encoded pictures stand those of a store of pixels.
"""

import contextlib
import io
import itertools
import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from PIL import Image

from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.timing import median_seconds, progress_bar
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.training import ORDERS, EncodeRun, ImageTokenizerRun, RunConfig, TransformerRun
from dalle_mini_impl.data.encoded_blocks import EncodedBlocks
from dalle_mini_impl.data.encoded_pictures import PICTURES_FILE
from dalle_mini_impl.data.inspect import SAMPLE_COUNT, Inspection
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.store_builder import build_store
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache, open_cache
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.text.sentencepiece_tokenizer import SPACE, TextTokenizer
from dalle_mini_impl.train.encode_source import BLOCK_SAMPLES, Batch, SourceBatches, encode_blocks, write_cache
from dalle_mini_impl.train.image_tokenizer import batch_pixels
from dalle_mini_impl.train.shared import loader, loop
from dalle_mini_impl.train.shared.encoding import Encoder
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.stream_batch import make_batch
from dalle_mini_impl.util.files import find_shipped
from dalle_mini_impl.util.text import without_surrogates

T = TypeVar("T")

PICTURES = 20_000
"""Pictures of the set by default."""
PER_TAR = 1000
WIDTH, HEIGHT = 80, 64
"""Of the pictures, in pixels."""
WORDS = 11
"""Words of a caption, about 70 characters."""
MODEL = "emoji"
"""Shipped model whose image tokenizer encodes the pictures."""
TEXT_TOKENIZER = "tokenizers/emoji.model"
TEXT_LENGTH = 32
DROPOUT = 0.1
CAPTIONS = 2000
"""Captions that are split in a round."""
BATCH = 64
STEPS = 100
"""Batches that are made in a round."""
STORE_STEPS = 20
"""Batches of pictures that are made in a round."""
STORE_SIZE = 128
"""Side of stored pictures in pixels."""
PIXEL_TARS = 2
"""Tars of the set whose pictures a store of pixels holds, for comparison."""
WORKERS = (1, 2)
PEER = "version 0.1"
_, PERMUTED = ORDERS


class FormerTokenizer(TextTokenizer):
    """Splits captions with BPE dropout as version 0.1 did: in each round, every place is looked at."""

    def encode_with_dropout(
        self, text: str, dropout: float, random: np.random.Generator, max_ids: int | None = None
    ) -> list[int]:
        """As `TextTokenizer.encode_with_dropout`, with the same ids."""
        pieces = list(self._model.normalize(without_surrogates(text)).replace(" ", SPACE))
        while len(pieces) > 1:
            best, best_cost = -1, math.inf
            skip = random.random(len(pieces) - 1) < dropout
            for left in range(len(pieces) - 1):
                cost = self._costs.get(pieces[left] + pieces[left + 1])
                if cost is not None and not skip[left] and cost < best_cost:
                    best, best_cost = left, cost
            if best < 0:
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        return self._ids_of_parts(pieces)[:max_ids]


def data_rows(count: int, repeats: int) -> Iterator[BenchRow]:
    """Time the way of pictures into a training, on the CPU.

    Args:
        count: pictures of the set, which is made first.
        repeats: rounds of which the median counts, for batches and captions; the rest is done once.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = write_set(Path(folder, "set"), count)
        yield inspect_row(source, count)
        yield from store_rows(source, Path(folder), count, repeats)
        yield encode_row(source, Path(folder, "ids"), count)
        cache = open_cache(Path(folder, "ids"), "train", load_image_tokenizer(MODEL)[1])
        yield caption_row(cache, repeats)
        yield from loader_rows(cache, repeats)


def write_set(folder: Path, count: int) -> Path:
    """Write pictures of blurred spots, as JPEG in tars, each with a caption of words of the shipped vocabulary."""
    folder.mkdir()
    random = np.random.default_rng(0)
    words = [piece.strip(SPACE) for piece in TextTokenizer(find_shipped(TEXT_TOKENIZER)).pieces]
    words = sorted({word for word in words if len(word) > 4 and word.isascii() and word.isalpha()})
    with progress_bar(count, "making the set", unit=" pictures") as bar:
        for first in range(0, count, PER_TAR):
            with tarfile.open(folder / f"{first // PER_TAR:05d}.tar", "w") as archive:
                for number in range(first, min(first + PER_TAR, count)):
                    spots = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                    buffer = io.BytesIO()
                    Image.fromarray(spots).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG")
                    caption = " ".join(words[place] for place in random.integers(len(words), size=WORDS))
                    for ending, content in (("jpg", buffer.getvalue()), ("txt", caption.encode())):
                        member = tarfile.TarInfo(f"{number:08d}.{ending}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
                    bar.update()
    return folder


class Growth:
    """How much memory the second half of a set takes beyond the first, files mapped into memory left out.

    Args:
        count: pictures of the set.
    """

    def __init__(self, count: int) -> None:
        self._half, self._seen = count // 2, 0
        self._memory = [0, 0]

    def watch(self, items: Iterable[T], pictures_of: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
        """The items, each of which stands for some pictures."""
        for item in items:
            before = self._seen
            self._seen += pictures_of(item)
            if before < self._half <= self._seen:
                self._memory[0] = own_memory()
            yield item
        self._memory[1] = own_memory()

    @property
    def bytes_per_picture(self) -> float:
        """Bytes for each picture of the second half, once all items are used up."""
        return max(0, self._memory[1] - self._memory[0]) / max(1, self._seen - self._half)


def own_memory() -> int:
    """Bytes of this process in memory, without mapped files where the system tells them apart (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)


def inspect_row(source: Path, count: int) -> BenchRow:
    """What `dalle data inspect` takes with one process."""
    inspection = Inspection(SAMPLE_COUNT, (64, 64), DataConfig.fit)
    growth = Growth(count)
    start = time.perf_counter()
    for pair in growth.watch(read_pairs(source, SkipLog())):
        inspection.add(pair)
    inspection.report()
    return _row("data/inspect", time.perf_counter() - start, count, growth)


def store_rows(source: Path, folder: Path, count: int, repeats: int) -> Iterator[BenchRow]:
    """Building a store of encoded pictures, and batches of the image tokenizer from it."""
    data = DataConfig(source=str(source), store=str(folder / "jpeg"), store_size=STORE_SIZE, store_format="jpeg")
    tars = ",".join(f"{number:05d}" for number in range(min(PIXEL_TARS, -(-count // PER_TAR))))
    pixels = DataConfig(source=f"{source}/{{{tars}}}.tar", store=str(folder / "pixels"), store_size=STORE_SIZE)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        build_store(data)
        seconds = time.perf_counter() - start
        build_store(pixels)
    each = (folder / "jpeg" / PICTURES_FILE).stat().st_size / count
    note = f"{count / seconds:,.0f} pictures/s, {each:,.0f} bytes a picture on the disk, pixels {4 * STORE_SIZE**2:,}"
    yield BenchRow("data/store", seconds, note=note, details={"pictures": count, "bytes_on_disk": each})
    config = ImageTokenizerRun(run=RunConfig(batch_size=BATCH))
    scenes = SceneRows(BATCH)

    def batches(store: PictureStore, workers: int) -> Iterator[Any]:
        run = replace(config.run, workers=workers)
        make = partial(batch_pixels, store, scenes, config=config)
        return loader.passes(make, [slice(0, BATCH)], 0, run, torch.device("cpu"))

    stores = {name: open_store(one, "train") for name, one in (("jpeg", data), ("pixels", pixels))}
    for workers in (0, WORKERS[-1]):
        made = {name: (batches(store, workers), workers) for name, store in stores.items()}
        taken = _batch_seconds(made, STORE_STEPS, repeats)
        note = "pictures/s: " + ", ".join(f"{STORE_STEPS * BATCH / value:,.0f}" for value in taken.values())
        yield BenchRow(f"data/store/{workers} workers", taken["jpeg"], "store of pixels", taken["pixels"], note=note)


def _batch_seconds(batches: dict[T, tuple[Iterator[Any], int]], steps: int, repeats: int) -> dict[T, float]:
    """Median seconds for some batches of each iterator, given with the workers that make them ahead."""
    seconds: dict[T, list[float]] = {name: [] for name in batches}
    for _ in range(repeats):
        for name, (made, workers) in batches.items():
            for _ in range(loader.AHEAD * workers):  # those that are ready
                next(made)
            start = time.perf_counter()
            for _ in range(steps):
                next(made)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def encode_row(source: Path, out: Path, count: int) -> BenchRow:
    """What `dalle train encode` takes without a picture store, each picture once; leaves the cache in `out`."""
    accelerator = loop.make_accelerator(mixed_precision="bf16")
    encoder = Encoder(*load_image_tokenizer(MODEL, str(accelerator.device)))
    config = EncodeRun(data=DataConfig(source=str(source)), out=str(out), variants=0)
    blocks = EncodedBlocks(out.with_name("blocks"))
    growth = Growth(count)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        blocks.prepare({})
        batches = iter(SourceBatches(config, encoder.tokenizer.config.size, BLOCK_SAMPLES, blocks.finished()))
        watched = growth.watch(batches, lambda item: len(item.entries) if isinstance(item, Batch) else 0)
        encode_blocks(accelerator, encoder, config, blocks, watched)
        write_cache(config, encoder, blocks)
    return _row("data/encode", time.perf_counter() - start, count, growth)


def caption_row(cache: TokenCache, repeats: int) -> BenchRow:
    """Choosing and splitting captions with BPE dropout."""
    rows = np.arange(min(CAPTIONS, len(cache)))

    def split_all(sampler: CaptionSampler, tokenizer: TextTokenizer) -> None:
        random = np.random.default_rng(0)
        for row in rows:
            tokenizer.encode_with_dropout(sampler.sample(int(row), random).text, DROPOUT, random, TEXT_LENGTH)

    new, former = _caption_parts(cache)
    seconds = median_seconds({"new": partial(split_all, *new), PEER: partial(split_all, *former)}, "cpu", repeats)
    note = ", ".join(f"{len(rows) / value:,.0f}" for value in seconds.values())
    return BenchRow("data/captions", seconds["new"], PEER, seconds[PEER], note=f"captions/s: {note}")


def loader_rows(cache: TokenCache, repeats: int) -> Iterator[BenchRow]:
    """Batches of the transformer stage: made when they are needed, and ahead by one and by two processes."""
    config = TransformerRun(text_length=TEXT_LENGTH, bpe_dropout=DROPOUT, run=RunConfig(batch_size=BATCH))
    steps = min(STEPS, max(1, len(cache) // BATCH))
    new, former = _caption_parts(cache)
    makers: dict[int | str, Callable[[int], Any]] = {
        0: _maker(cache, *new, config),
        PEER: _maker(cache, *former, replace(config, run=replace(config.run, order=PERMUTED))),
    }
    growth = Growth(len(cache))
    for _ in growth.watch(map(makers[0], range(len(cache) // BATCH)), lambda _: BATCH):
        pass
    batches: dict[int | str, tuple[Iterator[Any], int]] = {
        name: (map(make, itertools.count()), 0) for name, make in makers.items()
    }
    for workers in WORKERS:
        run = replace(config.run, workers=workers)
        made = loader.passes(lambda step, _: makers[0](step), [slice(None)], 0, run, torch.device("cpu"))
        batches[workers] = made, workers
    seconds = _batch_seconds(batches, steps, repeats)
    theirs = seconds[PEER]
    for workers in (0, *WORKERS):
        ours = seconds[workers]
        note = f"pictures/s: {steps * BATCH / ours:,.0f}, {steps * BATCH / theirs:,.0f}"
        note += f"; {growth.bytes_per_picture:.0f} bytes a picture" * (workers == 0)
        yield BenchRow(f"data/loader/{workers} workers", ours, PEER, theirs, note=note)


def _caption_parts(cache: TokenCache) -> list[tuple[CaptionSampler, TextTokenizer]]:
    """What chooses and splits captions: of this version, and of version 0.1."""
    path = find_shipped(TEXT_TOKENIZER)
    return [
        (CaptionSampler(cache.entries, {}), TextTokenizer(path)),
        (CaptionSampler(list(cache.entries), {}), FormerTokenizer(path)),
    ]


def _maker(
    cache: TokenCache, captions: CaptionSampler, tokenizer: TextTokenizer, config: TransformerRun
) -> Callable[[int], Any]:
    """What makes the batch of a step."""
    layout = StreamConfig(
        text_length=TEXT_LENGTH,
        text_vocab=tokenizer.vocab_size,
        grid=cache.header.grid,
        image_vocab=cache.header.codebook_size,
        bos_id=tokenizer.bos_id,
    )
    stream, rows, scenes = Stream(layout), slice(0, BATCH), SceneRows(BATCH)
    return lambda step: make_batch(cache, captions, tokenizer, stream, config, step, rows, scenes)


def _row(name: str, seconds: float, count: int, growth: Growth) -> BenchRow:
    note = f"{count / seconds:,.0f} pictures/s, {growth.bytes_per_picture:,.0f} bytes of memory a picture"
    details = {"pictures": count, "bytes_per_picture": growth.bytes_per_picture}
    return BenchRow(name, seconds, note=note, details=details)
