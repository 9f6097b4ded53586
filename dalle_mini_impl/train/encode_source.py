"""Encodes pictures straight from their source, without a picture store: the way for large sets.

The source is read in blocks of samples (`data/blocks.py`), which processes and their workers divide. The ids of a block
are one file (`data/encoded_blocks.py`), beside the cache until all are joined to it, so that a run that was killed goes
on after the blocks that it has finished. Batches never cross a block, and what is random about a picture follows from
its key: so ids do not depend on who encodes them, and when.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from dalle_mini_impl.config.training import EncodeRun
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import (
    ChangedPictures,
    change_pictures,
    changed_pixels,
    pixels_on,
    pixels_on_white,
    random_changes,
)
from dalle_mini_impl.data.block_folder import ENDING
from dalle_mini_impl.data.blocks import BlockEnd, FinishedBlocks, SampleBlock, SourceBlocks, SourcePicture
from dalle_mini_impl.data.encoded_blocks import SPLITS, EncodedBlocks
from dalle_mini_impl.data.entries import PictureEntry
from dalle_mini_impl.data.fit import fit_picture
from dalle_mini_impl.data.mixture import states_of
from dalle_mini_impl.data.pair import hash_position, key_hash, split_of
from dalle_mini_impl.data.token_cache import CONTENTS, write_header
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.encoding import (
    Encoder,
    describe_cache,
    encode_batch,
    file_shapes,
    file_types,
    is_augmented,
    summary,
)
from dalle_mini_impl.train.shared.loader import load
from dalle_mini_impl.train.shared.memory import PIXEL_BYTES
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_folder, values_digest
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.ray_workers import ray_workers

BLOCK_SAMPLES = 1024
"""Largest number of samples in a block: what is lost by a kill."""
BLOCK_BYTES = 2**26
"""Most bytes that the ids of a block take in memory, where that makes blocks smaller."""
RAY_SHARES = 4
"""Shares of the work for each worker of a Ray cluster, so that they end at about the same time."""
NOT_RESULTS = ("workers", "ray", "ray_workers", "out", "model_dir", "precision")
"""Settings that the ids do not follow from, or not from what the config says."""


@dataclass
class Batch:
    """One variant of some pictures of one split of one block, ready to be encoded."""

    block: SampleBlock
    split: str
    entries: list[PictureEntry]
    """Of the pictures, with their first variant; none with the others, which follow."""
    pictures: Tensor | ChangedPictures
    """Pixels (B, 3, H, W) in [-1, 1], or what gives them on a GPU."""

    def pin_memory(self) -> "Batch":
        """With pictures in memory that a GPU can copy from directly."""
        if isinstance(self.pictures, Tensor):
            return replace(self, pictures=self.pictures.pin_memory())
        return replace(self, pictures=ChangedPictures._make(part.pin_memory() for part in self.pictures))


class SourceBatches(IterableDataset[Batch | BlockEnd | UserError]):
    """The batches of the blocks that are not finished, each block followed by its end.

    Args:
        config: settings of the stage.
        size: height and width of the image tokenizer's pictures.
        block: samples of a block.
        finished: blocks to leave out.
        on_device: whether pictures are augmented where they are encoded, on a GPU, and not here.
        process: number of this process among those of the stage.
        processes: how many these are.
    """

    def __init__(
        self,
        config: EncodeRun,
        size: tuple[int, int],
        block: int,
        finished: FinishedBlocks,
        on_device: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._config, self._size, self._finished = config, size, finished
        self._block, self._on_device = block, on_device
        self._process, self._processes = process, processes
        self._frame = config.data.frame_for(size)
        weights = [source.weight for source in config.data.sources] or [1.0]
        self._ratios = [weight / min(weights) for weight in weights]

    def __iter__(self) -> Iterator[Batch | BlockEnd | UserError]:
        worker = get_worker_info()
        count = worker.num_workers if worker else 1
        number = self._process * count + (worker.id if worker else 0)
        try:
            yield from self._batches(number, self._processes * count)
        except UserError as error:  # raised here, it would come out of a worker with a traceback in its message
            yield error

    def _batches(self, number: int, count: int) -> Iterator[Batch | BlockEnd]:
        waiting: dict[str, list[_Picture]] = {split: [] for split in SPLITS}
        for item in SourceBlocks.open(self._config.data, self._block).read(self._finished, number, count):
            if isinstance(item, BlockEnd):
                for split in SPLITS:
                    yield from self._take(waiting[split], item.block, split, 1)
                yield item
                continue
            for picture in self._pictures(item):
                split = picture.entry.split
                waiting[split].append(picture)
                yield from self._take(waiting[split], item.block, split, self._config.batch_size)

    def _take(self, waiting: "list[_Picture]", block: SampleBlock, split: str, least: int) -> Iterator[Batch]:
        """The variants of the waiting pictures, if these are enough for a batch."""
        if len(waiting) >= least:
            rgba = np.stack([picture.rgba for picture in waiting])
            for variant in range(max(1, self._config.variants) if split == "train" else 1):
                entries = [picture.entry for picture in waiting] if variant == 0 else []
                yield Batch(block, split, entries, self._variant(waiting, rgba, variant))
            waiting.clear()

    def _variant(self, pictures: "list[_Picture]", rgba: np.ndarray, variant: int) -> Tensor | ChangedPictures:
        config = self._config
        if not is_augmented(variant, config) or pictures[0].entry.split != "train":
            return pixels_on_white(rgba, self._size)
        changes = torch.cat(
            [
                random_changes(
                    1, config.augment, loop.generator_for(config.seed, variant, one.copy, key_hash(one.entry.key))
                )
                for one in pictures
            ]
        )
        may_flip = np.array([one.entry.may_flip for one in pictures])
        changed = change_pictures(rgba, may_flip, changes, config.augment.keep_inside)
        return changed if self._on_device else changed_pixels(changed, self._size, config.augment.keep_inside)

    def _pictures(self, item: SourcePicture) -> "Iterator[_Picture]":
        """A picture, as often as the weight of its source asks for; none if it is to be left out."""
        pair, data = item.pair, self._config.data
        split = pair.split or split_of(item.key, data.validation)
        if split not in SPLITS or pair.details.get("kind") in data.skip_kinds:
            return
        ratio = self._ratios[item.source] if split == "train" else 1.0
        copies = int(ratio) + (hash_position(f"{item.key} again") < ratio % 1)
        rgba = np.asarray(fit_picture(pair.image, self._frame, data.fit).image)
        entry = PictureEntry(item.key, split, pair.may_flip, pair.captions, pair.details)
        for copy in range(copies):
            yield _Picture(entry, rgba, copy)


@dataclass
class _Picture:
    """A picture that waits for others of its batch."""

    entry: PictureEntry
    rgba: np.ndarray
    """(H, W, 4) uint8 in the frame of stored pictures."""
    copy: int
    """From 0, where the weight of its source has it encoded several times."""


@dataclass
class _OpenBlock:
    """What is encoded of a block."""

    entries: dict[str, list[PictureEntry]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    variants: dict[str, list[list[tuple[np.ndarray, ...]]]] = field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )
    """Split -> batches -> variants -> an array (B, h, w, …) for each file of a cache."""

    def add(self, batch: Batch, arrays: tuple[np.ndarray, ...]) -> None:
        """Add what is encoded of a batch."""
        self.entries[batch.split] += batch.entries
        if batch.entries:
            self.variants[batch.split].append([])
        self.variants[batch.split][-1].append(arrays)

    def joined(self, files: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Split -> file of a cache -> (n, variants, h, w, …) of all pictures; empty where there are none."""
        none = np.empty(0)
        return {
            split: {
                name: np.concatenate([np.stack([arrays[number] for arrays in batch], 1) for batch in batches] or [none])
                for number, name in enumerate(files)
            }
            for split, batches in self.variants.items()
        }


def encode_source(accelerator: Accelerator, encoder: Encoder, config: EncodeRun) -> None:
    """Encode the pictures of the sources that the config names, and write the token cache; all processes call this.

    Raises:
        UserError: a source cannot be read, has no picture of a split, or another work was begun beside the cache; or
            files cannot be written, or were written where the main process does not find them.
    """
    block = block_size(file_shapes(config, encoder.grid, encoder.embed_dim))
    rows = config.batch_size
    pass_bytes = rows * math.prod(encoder.tokenizer.config.size) * PIXEL_BYTES
    check_memory(pass_bytes, f"a batch of {rows:,} pictures", "lower batch_size")
    out = Path(config.out)
    blocks = EncodedBlocks(out.with_name(out.name + ENDING))
    chosen: list[Any] = [None]
    if accelerator.is_main_process:
        blocks.prepare(work_of(config, encoder, accelerator.mixed_precision, block))
        chosen = [blocks.finished()]
        if chosen[0].blocks:
            print(f"going on in {blocks.folder}, where {len(chosen[0].blocks)} blocks are finished")
    broadcast_object_list(chosen)
    blocks.check_shared()
    processes = accelerator.process_index, accelerator.num_processes
    try:
        if config.ray:
            encode_on_ray(config, accelerator.mixed_precision, blocks, block)
        else:
            encode_share(config, blocks, block, chosen[0], (accelerator, encoder), processes)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on from here") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        check_whole(config, blocks)
        write_cache(config, encoder, blocks)
    accelerator.wait_for_everyone()


def encode_share(
    config: EncodeRun,
    blocks: EncodedBlocks,
    block: int,
    finished: FinishedBlocks,
    tools: tuple[Accelerator, Encoder],
    share: tuple[int, int],
) -> None:
    """Encode what is not finished of a share, by its number and how many there are."""
    accelerator, encoder = tools
    on_device = accelerator.device.type == "cuda"
    batches = SourceBatches(config, encoder.tokenizer.config.size, block, finished, on_device, *share)
    items = load(batches, config.workers, "workers", accelerator.device) if config.workers else iter(batches)
    encode_blocks(accelerator, encoder, config, blocks, items)


def encode_on_ray(config: EncodeRun, precision: str, blocks: EncodedBlocks, block: int) -> None:
    """Have the workers of a Ray cluster encode; they write into the same folder of blocks."""
    with ray_workers(partial(make_encoder, config, precision), config.ray, config.ray_workers or None) as workers:
        count = RAY_SHARES * workers.count
        shares = [(number, count) for number in range(count)]
        for _ in tqdm(workers.map(partial(encode_on_worker, config, blocks, block), shares), "encoding", count):
            pass


def make_encoder(config: EncodeRun, precision: str) -> tuple[Accelerator, Encoder]:
    """What a worker encodes with, in the precision of the process that asks for it."""
    accelerator = loop.make_accelerator(mixed_precision=precision)
    return accelerator, Encoder.load(config, str(accelerator.device))


def encode_on_worker(
    config: EncodeRun,
    blocks: EncodedBlocks,
    block: int,
    tools: tuple[Accelerator, Encoder],
    share: tuple[int, int],
) -> None:
    """As `encode_share`; blocks that a killed worker had finished of the share are left out."""
    blocks.check_shared()
    encode_share(config, blocks, block, blocks.finished(), tools, share)


def encode_blocks(
    accelerator: Accelerator,
    encoder: Encoder,
    config: EncodeRun,
    blocks: EncodedBlocks,
    items: Iterator[Batch | BlockEnd | UserError],
) -> None:
    """Encode this process's batches, and write each block when it is whole."""
    types = file_types(config)
    opened: defaultdict[SampleBlock, _OpenBlock] = defaultdict(_OpenBlock)
    with tqdm(desc="encoding", unit=" pictures", disable=not accelerator.is_main_process) as bar:
        for item in items:
            if isinstance(item, UserError):
                raise item
            if isinstance(item, BlockEnd):
                done = opened.pop(item.block, _OpenBlock())
                blocks.write(item.block, item.is_last, done.entries, done.joined([name for name, _ in types]), item.log)
                continue
            size = encoder.tokenizer.config.size
            pixels = pixels_on(accelerator.device, item.pictures, size, config.augment.keep_inside)
            with accelerator.autocast():
                encoded = encode_batch(encoder, pixels, config)
            arrays = zip(encoded, types, strict=True)
            opened[item.block].add(item, tuple(values.cpu().numpy().astype(kind) for values, (_, kind) in arrays))
            bar.update(len(item.entries))


def check_whole(config: EncodeRun, blocks: EncodedBlocks) -> None:
    """Check that the blocks of all parts of the source are there.

    Raises:
        UserError: some are not, or the source cannot be read.
    """
    finished, parts = blocks.finished(partial=True), len(SourceBlocks.open(config.data, BLOCK_SAMPLES).parts)
    if missing := [part for part in range(parts) if not finished.is_whole(part)]:
        raise UserError(
            f"expected the blocks of {parts} parts of the source in {blocks.folder}, got not all of {len(missing)} of "
            f"them; use a folder that all machines share, then repeat the command"
        )


def write_cache(config: EncodeRun, encoder: Encoder, blocks: EncodedBlocks) -> None:
    """Join the blocks to the token cache, say what was skipped, and remove them."""
    counts = blocks.count()
    print(blocks.skipped().report() or "nothing was skipped")
    if empty := [split for split, count in counts.items() if not count]:
        raise UserError(
            f"expected training and validation pictures with captions in {', '.join(config.data.paths)}, got no "
            f"{' and no '.join(empty)} picture; see the list above, check data.validation and data.skip_kinds, and "
            f"remove {blocks.folder} to begin anew"
        )
    with replace_folder(config.out, CONTENTS) as folder:
        blocks.join(folder, counts, file_shapes(config, encoder.grid, encoder.embed_dim))
        write_header(folder, describe_cache(folder, config, encoder))
    blocks.remove()
    print(summary(counts, encoder.identity, config))


def block_size(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """Samples of a block, so that its ids take no more memory than `BLOCK_BYTES`."""
    picture = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in shapes.values())
    return max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // picture))


def work_of(config: EncodeRun, encoder: Encoder, precision: str, block: int) -> dict[str, Any]:
    """Everything that the ids follow from."""
    settings = {name: value for name, value in to_dict(config).items() if name not in NOT_RESULTS}
    return {
        **settings,
        "image tokenizer": encoder.identity,
        "scorer": encoder.scorer_identity,
        "precision": precision,
        "block": block,
        "files of the source": values_digest(states_of(config.data.paths, {})),
    }
