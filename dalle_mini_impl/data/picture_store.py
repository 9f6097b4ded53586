"""Decoded pictures in one memory-mapped file, so that training reads any picture in microseconds.

A store is a folder with `pixels.npy` (n, S, S, 4) uint8 RGBA, `pairs.jsonl` (one line per picture: key,
split, captions, …) and `store.json`. Random access by number is what lets a run shuffle, resume at any
step and split work over processes exactly.
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

GROW = 1024


@dataclass(frozen=True)
class PictureEntry:
    """What a store knows of a picture besides its pixels."""

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
    """Rows of `pixels` that belong to this split."""
    entries: list[PictureEntry]
    """One per number."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """RGBA pixels (len(indices), S, S, 4) uint8 of pictures of this split."""
        return self.pixels[self.rows[indices]]


def open_store(config: DataConfig, split: str) -> PictureStore:
    """Open the store a config names, building it from the source first when it is missing.

    Args:
        config: names the store and its source, and what to leave out.
        split: `train` or `validation`.

    Raises:
        UserError: neither store nor source is there, the store was made otherwise, or nothing is left.
    """
    folder = Path(config.store)
    if not config.store:
        raise UserError("data.store is empty; name a folder where decoded pictures are kept")
    if not folder.exists():
        build_store(config)
    try:
        identity = json.loads((folder / "store.json").read_text())["identity"]
        lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        everything = [entry_from_json(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a picture store ({type(error).__name__}: {error}); "
            f"let data.store name a folder that does not exist yet, or one that was built from data.source"
        ) from error
    wanted = _identity(config)
    if config.source and identity != wanted:
        raise UserError(
            f"store {folder} was built with {identity}, the config says {wanted}; delete the store or name another"
        )
    chosen = [
        (number, entry)
        for number, entry in enumerate(everything)
        if entry.split == split and entry.details.get("kind") not in config.skip_kinds
    ]
    if not chosen:
        raise UserError(f"store {folder} has no {split} pictures; check data.validation and data.skip_kinds")
    return PictureStore(pixels, np.array([number for number, _ in chosen]), [entry for _, entry in chosen])


def build_store(config: DataConfig) -> None:
    """Decode every picture of `config.source` into `config.store`, listing what had to be skipped."""
    log = SkipLog()
    size = config.store_size
    with replace_folder(config.store) as folder:
        count = _decode(read_pairs(config.source, log), folder, config)
        print(log.report() or "nothing was skipped")
        if not count:
            raise UserError(f"{config.source} has no readable picture with a caption; see the list above")
        (folder / "store.json").write_text(json.dumps({"identity": _identity(config), "size": size, "count": count}))
    print(f"decoded {count} pictures at {size} px into {config.store}")


def entry_from_json(line: dict[str, Any]) -> PictureEntry:
    """Rebuild an entry from its JSON line."""
    captions = tuple(Caption(**caption) for caption in line["captions"])
    return PictureEntry(line["key"], line["split"], line["may_flip"], captions, line["details"])


def _identity(config: DataConfig) -> dict[str, Any]:
    return {"source": config.source, "store_size": config.store_size, "validation": config.validation}


def _decode(pairs: Iterable[Pair], folder: Path, config: DataConfig) -> int:
    # The count is not known beforehand: pixels go to a plain file that grows, and become an .npy by its header.
    size, count = config.store_size, 0
    raw = folder / "pixels.raw"
    with raw.open("wb") as pixels, (folder / "pairs.jsonl").open("w", encoding="utf-8") as lines:
        for pair in tqdm(pairs, desc="decoding", unit=" pictures"):
            # Cropping to a square keeps proportions; a picture's middle is where its caption points.
            picture = ImageOps.fit(pair.image.convert("RGBA"), (size, size), Image.Resampling.LANCZOS)
            pixels.write(picture.tobytes())
            split = pair.split or split_of(pair.key, config.validation)
            entry = PictureEntry(pair.key, split, pair.may_flip, pair.captions, pair.details)
            lines.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
            count += 1
    shape = (count, size, size, 4)
    if count:
        out = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        source = np.memmap(raw, dtype=np.uint8, mode="r", shape=shape)
        for start in range(0, count, GROW):
            out[start : start + GROW] = source[start : start + GROW]
        out.flush()
    raw.unlink()
    return count


def concept_indices(store: PictureStore) -> np.ndarray:
    """A number (n,) for each picture, equal where two pictures show the same concept."""
    names = [str(entry.details.get("concept", entry.key)) for entry in store.entries]
    return np.unique(names, return_inverse=True)[1]
