"""Decoded pictures in one memory-mapped file, so that training reads any picture in microseconds.

A store is a folder with `pixels.npy` (n, S, S, 4) uint8 RGBA, `pairs.jsonl` (one line per picture: key, split,
captions, …) and `store.json` (what it was built from). Because pictures are read by number, a run can shuffle them,
resume at any step and divide them among processes exactly.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.pair import Caption, Pair, SkipLog, split_of
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_folder

HEADER_FILE = "store.json"
ENTRIES_FILE = "pairs.jsonl"
PIXELS_FILE = "pixels.npy"
CONTENTS = (HEADER_FILE, ENTRIES_FILE, PIXELS_FILE)
COPIED_PICTURES = 1024
"""Pictures copied at once, which bounds the memory that building a store takes."""


@dataclass(frozen=True)
class PictureEntry:
    """What a store or token cache holds about a picture besides its pixels or ids; see `Pair` for the fields."""

    key: str
    split: str
    may_flip: bool
    captions: tuple[Caption, ...]
    details: dict[str, Any]


@dataclass(frozen=True)
class PictureStore:
    """Decoded pictures of one split."""

    pixels: np.ndarray
    """(n, S, S, 4) uint8 RGBA of the whole store, memory-mapped."""
    rows: np.ndarray
    """(len(self),) rows of `pixels` that belong to this split."""
    entries: list[PictureEntry]
    """One for each of `rows`."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """RGBA pixels (len(indices), S, S, 4) uint8 of pictures of this split."""
        return self.pixels[self.rows[indices]]


def open_store(config: DataConfig, split: str) -> PictureStore:
    """Open the store that a config names; if it is missing, build it from the source first.

    Args:
        config: names the store and its source, and the kinds of pictures to leave out.
        split: `train` or `validation`.

    Raises:
        UserError: neither store nor source exists, the store was built with other settings, or no picture is left.
    """
    if not config.store:
        raise UserError("data.store is empty; expected a folder for decoded pictures; set it")
    folder = Path(config.store)
    if not folder.exists():
        build_store(config)
    try:
        identity = json.loads((folder / HEADER_FILE).read_text())["identity"]
        lines = (folder / ENTRIES_FILE).read_text(encoding="utf-8").rstrip("\n").split("\n")
        pixels = np.load(folder / PIXELS_FILE, mmap_mode="r")
        entries = [entry_from_json(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a picture store ({type(error).__name__}: {error}); "
            f"let data.store name a folder that does not exist yet, or one that was built from data.source"
        ) from error
    expected = _identity(config)
    if config.source and identity != expected:
        raise UserError(
            f"store {folder} was built with {identity}, the config says {expected}; delete the store or name another"
        )
    chosen = [
        (row, entry)
        for row, entry in enumerate(entries)
        if entry.split == split and entry.details.get("kind") not in config.skip_kinds
    ]
    if not chosen:
        raise UserError(f"store {folder} has no {split} pictures; check data.validation and data.skip_kinds")
    return PictureStore(pixels, np.array([row for row, _ in chosen]), [entry for _, entry in chosen])


def build_store(config: DataConfig) -> None:
    """Decode every picture of `config.source` into `config.store`, and print what was skipped.

    Raises:
        UserError: the source cannot be read, or has no usable picture, or the store cannot be written.
    """
    log = SkipLog()
    size = config.store_size
    with replace_folder(config.store, CONTENTS) as folder:
        count = _decode_pictures(read_pairs(config.source, log), folder, config)
        print(log.report() or "nothing was skipped")
        if not count:
            raise UserError(f"{config.source} has no readable picture with a caption; see the list above")
        header = {"identity": _identity(config), "size": size, "count": count}
        (folder / HEADER_FILE).write_text(json.dumps(header))
    print(f"decoded {count} pictures at {size} px into {config.store}")


def entry_from_json(values: dict[str, Any]) -> PictureEntry:
    """Rebuild an entry from one line of `pairs.jsonl`."""
    captions = tuple(Caption(**caption) for caption in values["captions"])
    return PictureEntry(values["key"], values["split"], values["may_flip"], captions, values["details"])


def _identity(config: DataConfig) -> dict[str, Any]:
    """The settings that determine the content of a store."""
    return {"source": config.source, "store_size": config.store_size, "validation": config.validation}


def _decode_pictures(pairs: Iterable[Pair], folder: Path, config: DataConfig) -> int:
    """Write pixels and entries of all pairs, and return their number."""
    size = config.store_size
    count = 0
    # The number of pictures is unknown at first, so pixels are appended to a plain file and copied to the .npy later.
    raw = folder / "pixels.raw"
    with raw.open("wb") as pixels, (folder / ENTRIES_FILE).open("w", encoding="utf-8") as lines:
        for pair in tqdm(pairs, desc="decoding", unit=" pictures"):
            # Cropping to a square keeps proportions; captions usually describe the middle of a picture.
            picture = ImageOps.fit(pair.image.convert("RGBA"), (size, size), Image.Resampling.LANCZOS)
            pixels.write(picture.tobytes())
            split = pair.split or split_of(pair.key, config.validation)
            entry = PictureEntry(pair.key, split, pair.may_flip, pair.captions, pair.details)
            lines.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
            count += 1
    shape = (count, size, size, 4)
    if count:
        array = np.lib.format.open_memmap(folder / PIXELS_FILE, mode="w+", dtype=np.uint8, shape=shape)
        source = np.memmap(raw, dtype=np.uint8, mode="r", shape=shape)
        for start in range(0, count, COPIED_PICTURES):
            array[start : start + COPIED_PICTURES] = source[start : start + COPIED_PICTURES]
        array.flush()
    raw.unlink()
    return count


def concept_indices(store: PictureStore) -> np.ndarray:
    """An index (n,) int64 for each picture, equal for pictures of the same concept (detail `concept`, else the key)."""
    concepts = [str(entry.details.get("concept", entry.key)) for entry in store.entries]
    return np.unique(concepts, return_inverse=True)[1]
