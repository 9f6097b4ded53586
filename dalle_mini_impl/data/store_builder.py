"""Builds picture stores: of pixels, by one process, or of encoded pictures, by several.

Encoded pictures are made in blocks of samples (`data/blocks.py`), each a file beside the store until all are joined, so
that a build that was killed goes on after the blocks that are finished.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.block_folder import ENDING
from dalle_mini_impl.data.blocks import BlockEnd, FinishedBlocks, SourceBlocks, SourcePicture
from dalle_mini_impl.data.checksums import write_header_file
from dalle_mini_impl.data.encoded_pictures import JPEG_QUALITY, PICTURE_INDEX, encode_picture
from dalle_mini_impl.data.entries import ENTRY_FILES, PictureEntry, write_entries
from dalle_mini_impl.data.fit import FittedPicture, fit_picture
from dalle_mini_impl.data.mixture import read_sources, states_of
from dalle_mini_impl.data.pair import SkipLog, fill_splits, split_of
from dalle_mini_impl.data.picture_blocks import BuildCounts, PictureBlock, PictureBlocks
from dalle_mini_impl.data.shards import EXPECTED
from dalle_mini_impl.data.source_files import FileStates
from dalle_mini_impl.data.store_files import (
    CONTENTS,
    HEADER_FILE,
    PIXELS_FILE,
    SKIPPED_FILE,
    SOURCES_FILE,
    source_from,
)
from dalle_mini_impl.data.store_size import height_and_width, shown_size, size_in_header
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable, file_digest, only_writer, replace_folder, values_digest
from dalle_mini_impl.util.memory import check_memory, check_processes
from dalle_mini_impl.util.worker_processes import count_done, divide

MAX_SKIPPED_LINES = 200
"""Pictures that were skipped, and their reasons, that a store remembers."""
PIXEL_BYTES = 16
"""Bytes that a pixel takes while a picture is fitted."""
BLOCK_SAMPLES = 1024
"""Largest number of samples in a block: what is lost by a kill."""
BLOCK_BYTES = 2**28
"""Most bytes that the pixels of a block would take, where that makes blocks smaller: its pictures are in memory."""


def build_store(config: DataConfig, picture_size: int | tuple[int, int] = 0, processes: int = 1) -> None:
    """Store every picture of `config.source` or `config.sources` in `config.store`, and print what was skipped.

    Args:
        config: names sources and store.
        picture_size: side of a square, or height and width, in pixels of the model's pictures, from which the size of
            the stored ones follows where the config does not set it; 0 if there is no model.
        processes: how many encode pictures at the same time; the store does not depend on it.

    Raises:
        UserError: the source cannot be read, or has no usable picture; the store cannot be written, is being written
            by another run, or its folder holds anything else; pixels are to be stored by several processes.
    """
    frame = config.frame_for(height_and_width(picture_size))
    check_replaceable(config.store, CONTENTS)
    check_memory(math.prod(frame) * PIXEL_BYTES, f"pictures of {frame[0]}×{frame[1]} pixels", "choose a smaller size")
    if not config.paths:
        raise UserError(f"no source was named; expected {EXPECTED}; set data.source or name one")
    if processes > 1 and not config.stores_encoded:
        raise UserError(
            f"expected one process for a store of pixels, got {processes}; choose --format png or jpeg, or one process"
        )
    check_processes(processes, "--processes")
    build = _build_encoded if config.stores_encoded else _build_pixels
    built = build(config, frame, processes)
    count = built.counts["pictures"]
    if without := built.counts["without captions"]:
        print(f"{without} of {count} pictures have no caption: only the image tokenizer learns from them")
    print(f"{config.fit}: {built.fitted.text()}")
    if enlarged := built.counts["enlarged"]:
        print(f"{enlarged} of {count} pictures are smaller than {shown_size(frame)} pixels and were enlarged")
    verb = f"encoded as {config.store_format}" if config.stores_encoded else "decoded"
    print(f"{verb} {count} pictures at {shown_size(frame)} px into {config.store}")


def _check_not_empty(config: DataConfig, built: BuildCounts, log: SkipLog) -> None:
    """Print what was skipped; refuse a store without pictures."""
    print(log.report() or "nothing was skipped")
    if not built.counts["pictures"]:
        raise UserError(f"{', '.join(config.paths)} has no readable picture; see the list above")


def _finish(
    config: DataConfig, frame: tuple[int, int], folder: Path, states: FileStates, built: BuildCounts, log: SkipLog
) -> None:
    """Write what the folder of a store holds besides pictures and entries."""
    (folder / SOURCES_FILE).write_text(json.dumps(states))
    (folder / SKIPPED_FILE).write_text(log.report(limit=MAX_SKIPPED_LINES), encoding="utf-8")
    write_header_file(folder / HEADER_FILE, _header(config, frame, folder, built))


def _header(config: DataConfig, frame: tuple[int, int], folder: Path, built: BuildCounts) -> dict[str, Any]:
    """What the header says of a store whose other files are complete in `folder`."""
    content = PICTURE_INDEX if config.stores_encoded else PIXELS_FILE
    return {
        "identity": {
            "source": config.source,
            "store_size": size_in_header(frame),
            "store_format": config.store_format if config.stores_encoded else "pixels",
            "validation": config.validation,
            "fit": config.fit,
            "every": config.every,
        },
        "source_from_here": source_from(config.source, config.store) if config.source else "",
        "sources": [
            {"from_here": source_from(path, config.store), "pictures": built.counts[f"source {number}"]}
            for number, path in enumerate(config.paths)
            if config.sources
        ],
        "size": size_in_header(frame),
        "count": built.counts["pictures"],
        "checksums": {name: file_digest(folder / name) for name in (content, *ENTRY_FILES, SOURCES_FILE)},
    }


def _fit(image: Image.Image, frame: tuple[int, int], fit: str, counts: BuildCounts) -> FittedPicture:
    """Fit a picture into the frame of the store, and count what became of it."""
    fitted = fit_picture(image, frame, fit)
    counts.fitted.add(fitted)
    counts.counts["enlarged"] += image.height < frame[0] or image.width < frame[1]
    return fitted


# --- pixels


def _build_pixels(config: DataConfig, frame: tuple[int, int], processes: int) -> BuildCounts:
    """Decode all pictures, in this process alone."""
    log = SkipLog()
    pairs = read_sources(config, log)
    built = BuildCounts()
    entries: list[PictureEntry] = []
    movable: list[int] = []
    # Listed before the pictures are read: what changes meanwhile is noticed when the store is opened.
    states = states_of(config.paths, {})
    with only_writer(config.store), replace_folder(config.store, CONTENTS) as folder:
        with _pixels_file(folder / PIXELS_FILE, entries, frame) as file:
            for source, key, pair in tqdm(pairs, desc="decoding", unit=" pictures"):
                file.write(_fit(pair.image, frame, config.fit, built).image.tobytes())
                split = pair.split or split_of(key, config.validation)
                if not pair.split:
                    movable.append(len(entries))
                entries.append(PictureEntry(key, split, pair.may_flip, pair.captions, pair.details))
                built.add(entries[-1], source, may_move=not pair.split)
        _check_not_empty(config, built, log)
        _fill_splits(entries, movable, config.validation)
        write_entries(folder, entries)
        _finish(config, frame, folder, states, built, log)
    return built


@contextlib.contextmanager
def _pixels_file(path: Path, entries: Sequence[PictureEntry], frame: tuple[int, int]) -> Iterator[Any]:
    """A file to which the pixels of as many pictures are appended as there are entries in the end."""

    def write_header() -> None:
        shape = (len(entries), *frame, 4)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    with path.open("wb") as file:
        write_header()  # leaves room for the number of pictures, which is unknown at first
        yield file
        file.seek(0)
        write_header()


def _fill_splits(entries: list[PictureEntry], movable: Sequence[int], validation: float) -> None:
    """See `fill_splits`. Stages that need captions need both splits, too, so pictures with captions come first."""
    may_move = {*movable}
    group = [index for index, entry in enumerate(entries) if entry.captions] or list(range(len(entries)))
    assigned = [(entries[index].key, entries[index].split, index in may_move) for index in group]
    for index, split in zip(group, fill_splits(assigned, validation), strict=True):
        entries[index] = replace(entries[index], split=split)


# --- encoded pictures


def _build_encoded(config: DataConfig, frame: tuple[int, int], processes: int) -> BuildCounts:
    """Encode all pictures in blocks, and join these."""
    size = max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // (4 * math.prod(frame))))
    source = SourceBlocks.open(config, size, "optional")  # says at once what is wrong with it
    states = states_of(config.paths, {})
    blocks = PictureBlocks(Path(config.store).with_name(Path(config.store).name + ENDING))
    with only_writer(config.store):
        blocks.prepare(_work(config, frame, states, size))
        finished = blocks.finished()
        if finished.blocks:
            print(f"going on in {blocks.folder}, where {len(finished.blocks)} blocks are finished")
        with tqdm(desc="encoding", unit=" pictures") as bar:
            if processes == 1:
                for _ in _encoded(config, frame, blocks, source.read(finished)):
                    bar.update()
            else:
                task = partial(_encode_share, config, frame, blocks, finished, size)
                divide(task, processes, bar, f"read {', '.join(config.paths)}")
        built, log = blocks.counted(), blocks.skipped()
        if not built.counts["pictures"]:
            blocks.remove()
        _check_not_empty(config, built, log)
        with replace_folder(config.store, CONTENTS) as folder:
            blocks.join(folder, built.counts["pictures"], _entries(blocks, built, config.validation))
            _finish(config, frame, folder, states, built, log)
        blocks.remove()
    return built


def _work(config: DataConfig, frame: tuple[int, int], states: FileStates, block: int) -> dict[str, Any]:
    """Everything that the blocks follow from."""
    return {
        "sources": [source_from(path, config.store) for path in config.paths],
        "size": size_in_header(frame),
        "format": config.store_format,
        "quality": JPEG_QUALITY,
        "validation": config.validation,
        "fit": config.fit,
        "every": config.every,
        "block": block,
        "files of the source": values_digest(states),
    }


def _encode_share(
    config: DataConfig,
    frame: tuple[int, int],
    blocks: PictureBlocks,
    finished: FinishedBlocks,
    size: int,
    worker: int,
    count: int,
) -> None:
    """In a process of its own, make its share of the blocks of some size."""
    items = SourceBlocks.open(config, size, "optional").read(finished, worker, count)
    for number, _ in enumerate(_encoded(config, frame, blocks, items), 1):
        count_done(number)


def _encoded(
    config: DataConfig, frame: tuple[int, int], blocks: PictureBlocks, items: Iterable[SourcePicture | BlockEnd]
) -> Iterator[SourcePicture]:
    """Encode and write the blocks of some pictures; yields each picture when it is encoded."""
    pictures = PictureBlock()
    for item in items:
        if isinstance(item, BlockEnd):
            blocks.write(item.block, item.is_last, pictures, item.log)
            pictures = PictureBlock()
            continue
        pair = item.pair
        rgba = np.asarray(_fit(pair.image, frame, config.fit, pictures.counts).image)
        split = pair.split or split_of(item.key, config.validation)
        entry = PictureEntry(item.key, split, pair.may_flip, pair.captions, pair.details)
        content = encode_picture(rgba, pair.content, config.store_format)
        pictures.add(content, entry, item.source, may_move=not pair.split)
        yield item


def _entries(
    blocks: PictureBlocks, built: BuildCounts, validation: float
) -> Iterator[PictureEntry] | list[PictureEntry]:
    """The entries of all pictures, of which one is moved where the hashes of a small set leave a split empty."""
    if not (0 < validation < 1 and built.counts["movable"] and built.lacks_a_split()):
        return blocks.entries()
    entries = list(blocks.entries())
    _fill_splits(entries, blocks.movable(), validation)
    return entries
