"""Decoded pictures in one memory-mapped file, so that training reads any picture in microseconds.

A store is a folder with `pixels.npy` (n, H, W, 4) uint8 RGBA, what else is known of each picture (`entries.py`),
`sources.json` (the files that it was built from, with sizes and times) and `store.json` (its settings, and checksums of
the other files). Because pictures are read by number, a run can shuffle them, resume at any step and divide them among
processes exactly.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.config.data import FITS, DataConfig, fits_into
from dalle_mini_impl.data.checksums import (
    VERIFIED_FILE,
    check_checksums,
    open_array,
    read_header_file,
    verify_once,
    write_header_file,
)
from dalle_mini_impl.data.entries import ENTRIES_FILE, ENTRY_FILES, PictureEntries, PictureEntry, write_entries
from dalle_mini_impl.data.fit import FitCounts, fit_picture
from dalle_mini_impl.data.mixture import describe_source_changes, read_sources, repeat_rows, states_of
from dalle_mini_impl.data.pair import SkipLog, fill_splits, split_of
from dalle_mini_impl.data.remote import is_address
from dalle_mini_impl.data.shards import EXPECTED
from dalle_mini_impl.data.store_size import (
    frame_of_header,
    height_and_width,
    rebuild_advice,
    shown_size,
    size_in_header,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable, file_digest, only_writer, replace_folder
from dalle_mini_impl.util.memory import check_memory

HEADER_FILE = "store.json"
PIXELS_FILE = "pixels.npy"
SOURCES_FILE = "sources.json"
SKIPPED_FILE = "skipped.txt"
CONTENTS = (PIXELS_FILE, HEADER_FILE, *ENTRY_FILES, SOURCES_FILE, SKIPPED_FILE, VERIFIED_FILE)
"""What a store's folder holds; the first marks it."""
FIT_OF_OLD_STORES = "crop"
"""How pictures were fitted where a store does not say."""
MAX_SKIPPED_LINES = 200
"""Pictures that were skipped, and their reasons, that a store remembers."""
PIXEL_BYTES = 16
"""Bytes that a pixel takes while a picture is fitted."""


@dataclass(frozen=True)
class PictureStore:
    """Decoded pictures of one split."""

    pixels: np.ndarray
    """(n, H, W, 4) uint8 RGBA of the whole store, memory-mapped."""
    rows: np.ndarray
    """(len(self),) rows of `pixels` that belong to this split."""
    entries: PictureEntries
    """One for each of `rows`."""
    version: str = ""
    """From `store_version`."""

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the stored pictures."""
        height, width = self.pixels.shape[1:3]
        return height, width

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """RGBA pixels (len(indices), H, W, 4) uint8 of pictures of this split."""
        return self.pixels[self.rows[indices]]


def open_store(
    config: DataConfig,
    split: str,
    *,
    captions: Literal["needed", "optional"] = "needed",
    picture_size: int | tuple[int, int] = 0,
    any_proportions: bool = False,
) -> PictureStore:
    """Open the store that a config names; if it is missing, build it from the source first.

    Args:
        config: names the store and its source, and the kinds of pictures to leave out.
        split: `train` or `validation`.
        captions: `needed` leaves out pictures without a caption.
        picture_size: side of a square, or height and width, in pixels of the model's pictures; 0 if it has none.
        any_proportions: whether stored pictures of other proportions do as well, if one side is long enough.

    Raises:
        UserError: neither store nor source exists; the store was built with other settings, from files that have
            changed since, or with pictures that are smaller or of other proportions than needed; it is damaged; or no
            picture is left.
    """
    if not config.store:
        raise UserError("data.store is empty; expected a folder for decoded pictures; set it")
    folder = Path(config.store)
    picture = height_and_width(picture_size)
    needed = (0, 0) if any_proportions and len(set(config.store_frame)) == 2 else picture
    frame = config.frame_for(needed)
    if not folder.exists():
        build_store(config, needed)
    header, pixels, entries = _read_store(folder)
    if config.paths:
        _check_settings(folder, header, config)
        if changes := source_changes(folder, config.source):
            raise UserError(
                f"expected {', '.join(config.paths)} to be as it was when the store {folder} was built, got {changes}; "
                f"{rebuild_advice(config, pixels.shape[1:3])}, or set data.source='' to use the store as it is"
            )
    height, width = pixels.shape[1:3]
    large_enough = max(height, width) >= max(picture)
    if any(picture) and not (large_enough if any_proportions else fits_into(picture, (height, width))):
        advice = f"{rebuild_advice(config, frame)}, or name another" if config.paths else "name another"
        raise UserError(
            f"store {folder} holds pictures of {height}×{width} pixels, expected at least the "
            f"{picture[0]}×{picture[1]} of the model's pictures, in their proportions; {advice}"
        )
    of_split = entries.find(split, config.skip_kinds)
    chosen = of_split
    if captions == "needed":
        chosen = of_split[entries.of_rows(of_split).caption_counts() > 0]
    if not len(chosen) and len(of_split):
        raise UserError(
            f"none of the {len(of_split)} {split} pictures of store {folder} has a caption, which this needs; add a "
            f".txt file beside each picture and rebuild the store"
        )
    if not len(chosen):
        raise UserError(f"store {folder} has no {split} pictures; check data.validation and data.skip_kinds")
    if config.sources and split == "train":
        pictures = [source["pictures"] for source in header["sources"]]
        chosen = repeat_rows(chosen, pictures, [source.weight for source in config.sources])
    return PictureStore(pixels, chosen, entries.of_rows(chosen), store_version(folder))


def build_store(config: DataConfig, picture_size: int | tuple[int, int] = 0) -> None:
    """Decode every picture of `config.source` or `config.sources` into `config.store`, and print what was skipped.

    Args:
        config: names sources and store.
        picture_size: side of a square, or height and width, in pixels of the model's pictures, from which the size of
            the stored ones follows where the config does not set it; 0 if there is no model.

    Raises:
        UserError: the source cannot be read, or has no usable picture; the store cannot be written, is being written
            by another run, or its folder holds anything else.
    """
    frame = config.frame_for(height_and_width(picture_size))
    check_replaceable(config.store, CONTENTS)
    check_memory(math.prod(frame) * PIXEL_BYTES, f"pictures of {frame[0]}×{frame[1]} pixels", "choose a smaller size")
    log = SkipLog()
    if not config.paths:
        raise UserError(f"no source was named; expected {EXPECTED}; set data.source or name one")
    pairs = read_sources(config, log)
    counts = [0] * len(config.paths)
    with only_writer(config.store), replace_folder(config.store, CONTENTS) as folder:
        # Listed before the pictures are read: what changes meanwhile is noticed when the store is opened.
        (folder / SOURCES_FILE).write_text(json.dumps(states_of(config.paths, {})))
        builder = _Builder(folder, frame, config.fit)
        with builder:
            for number, key, pair in tqdm(pairs, desc="decoding", unit=" pictures"):
                split = pair.split or split_of(key, config.validation)
                counts[number] += 1
                entry = PictureEntry(key, split, pair.may_flip, pair.captions, pair.details)
                builder.add(pair.image, entry, may_move=not pair.split)
        print(log.report() or "nothing was skipped")
        (folder / SKIPPED_FILE).write_text(log.report(limit=MAX_SKIPPED_LINES), encoding="utf-8")
        count = len(builder.entries)
        if not count:
            raise UserError(f"{', '.join(config.paths)} has no readable picture; see the list above")
        _fill_splits(builder.entries, builder.movable, config.validation)
        write_entries(folder, builder.entries)
        header = {
            "identity": {
                "source": config.source,
                "store_size": size_in_header(frame),
                "validation": config.validation,
                "fit": config.fit,
                "every": config.every,
            },
            "source_from_here": _source_from(config.source, config.store) if config.source else "",
            "sources": [
                {"from_here": _source_from(path, config.store), "pictures": number}
                for path, number in zip(config.paths, counts, strict=True)
                if config.sources
            ],
            "size": size_in_header(frame),
            "count": count,
            "checksums": {name: file_digest(folder / name) for name in (PIXELS_FILE, *ENTRY_FILES, SOURCES_FILE)},
        }
        write_header_file(folder / HEADER_FILE, header)
    if without := sum(not entry.captions for entry in builder.entries):
        print(f"{without} of {count} pictures have no caption: only the image tokenizer learns from them")
    print(f"{config.fit}: {builder.fitted.text()}")
    if builder.enlarged:
        print(f"{builder.enlarged} of {count} pictures are smaller than {shown_size(frame)} pixels and were enlarged")
    print(f"decoded {count} pictures at {shown_size(frame)} px into {config.store}")


class _Builder:
    """Appends pictures to the pixels of a new store; a context manager."""

    def __init__(self, folder: Path, frame: tuple[int, int], fit: str) -> None:
        self.frame, self.fit = frame, fit
        self.fitted = FitCounts()
        self.entries: list[PictureEntry] = []
        self.movable: list[int] = []
        """Indices of entries whose split the source does not say."""
        self.enlarged = 0
        """Pictures that are smaller than the frame."""
        self._file = (folder / PIXELS_FILE).open("wb")

    def __enter__(self) -> None:
        # The number of pictures is unknown at first. The format leaves room in the header to write it in the end.
        self._write_header()

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def add(self, image: Image.Image, entry: PictureEntry, may_move: bool) -> None:
        """Append a picture."""
        self.enlarged += image.height < self.frame[0] or image.width < self.frame[1]
        fitted = fit_picture(image, self.frame, self.fit)
        self.fitted.add(fitted)
        self._file.write(fitted.image.tobytes())
        if may_move:
            self.movable.append(len(self.entries))
        self.entries.append(entry)

    def _write_header(self) -> None:
        shape = (len(self.entries), *self.frame, 4)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _fill_splits(entries: list[PictureEntry], movable: Sequence[int], validation: float) -> None:
    """See `fill_splits`. Stages that need captions need both splits, too, so pictures with captions come first."""
    may_move = {*movable}
    group = [index for index, entry in enumerate(entries) if entry.captions] or list(range(len(entries)))
    assigned = [(entries[index].key, entries[index].split, index in may_move) for index in group]
    for index, split in zip(group, fill_splits(assigned, validation), strict=True):
        entries[index] = replace(entries[index], split=split)


def _read_store(folder: Path) -> tuple[dict[str, Any], np.ndarray, PictureEntries]:
    """Header, memory-mapped pixels and entries of a store, verified.

    Raises:
        UserError: the folder is no store, or is damaged.
    """
    try:
        header = read_header_file(folder / HEADER_FILE)
        header["identity"].setdefault("fit", FIT_OF_OLD_STORES)
        header["identity"].setdefault("every", 1)
        frame = frame_of_header(header["identity"]["store_size"])
        settings = [header["identity"][name] for name in ("source", "validation", "fit")]
        if list(map(type, settings)) not in ([str, float, str], [str, int, str]):
            raise ValueError(f"{HEADER_FILE} has the settings {settings}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a picture store ({type(error).__name__}: {error}); "
            f"let data.store name a folder that does not exist yet, or one that was built from data.source"
        ) from error
    try:
        checksums = header.get("checksums", {})  # stores of old versions have none
        names = [name for name in (*ENTRY_FILES, PIXELS_FILE, SOURCES_FILE) if name in checksums]
        verify_once(folder, names, lambda: check_checksums(folder, names, checksums))
        entries = PictureEntries.open(folder)
        pixels = open_array(folder / PIXELS_FILE)
        if pixels.dtype != np.uint8 or pixels.shape != (len(entries), *frame, 4):
            raise ValueError(
                f"{PIXELS_FILE} holds {pixels.dtype} {pixels.shape}, expected uint8 {(len(entries), *frame, 4)}"
            )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"store {folder} is damaged ({type(error).__name__}: {error}); delete it, so that it is built anew from "
            f"{header['identity']['source'] or 'its source'}"
        ) from error
    return header, pixels, entries


def _check_settings(folder: Path, header: dict[str, Any], config: DataConfig) -> None:
    """Refuse a store that was built from another source or with other settings."""
    built = header["identity"]
    others = [source["from_here"] for source in header.get("sources", [])]
    if config.sources and others != [_source_from(path, folder) for path in config.paths]:
        was = ", ".join(others) or built["source"]
        raise UserError(
            f"store {folder} was built from {was}, the config names {', '.join(config.paths)}; "
            f"delete the store or name another"
        )
    same_path = header.get("source_from_here") == _source_from(config.source, folder)
    expected = {
        "source": built["source"] if same_path else config.source,
        "store_size": size_in_header(config.store_frame) or built["store_size"],
        "validation": config.validation,
        "fit": config.fit,
        "every": config.every,
    }
    if different := [name for name, value in expected.items() if built[name] != value]:
        was, says = (", ".join(f"{name}={values[name]!r}" for name in different) for values in (built, expected))
        advice = "delete the store or name another"
        if different == ["fit"]:
            advice = f"set data.fit={built['fit']} to use it as it is, or {advice}"
        raise UserError(f"store {folder} was built with {was}, the config says {says}; {advice}")


def source_changes(folder: Path, source: str = "") -> str:
    """What was added to, changed in or removed from the source of a store since it was built; empty if nothing was.

    Nothing counts as changed where the source is gone, or where an old version built the store.

    Args:
        folder: the store.
        source: as the config names it; empty for the one that the store was built from.
    """
    try:
        before = json.loads((folder / SOURCES_FILE).read_text())
        header = read_header_file(folder / HEADER_FILE)
        several = [entry["from_here"] for entry in header.get("sources", [])]
        from_here = several or [header["source_from_here"]]
        paths = [source] if source else [path if is_address(path) else str(folder / path) for path in from_here]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return describe_source_changes(paths, before)


def skipped_text(folder: Path) -> str:
    """What was skipped when a store was built, and why; empty if nothing was, or if an old version built it."""
    try:
        return (folder / SKIPPED_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def store_version(folder: Path) -> str:
    """A text that is equal for stores of equal content; empty for a missing store, or one of an old version."""
    try:
        checksums = read_header_file(folder / HEADER_FILE)["checksums"]
        return f"{checksums[PIXELS_FILE][:8]}{checksums[ENTRIES_FILE][:8]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def store_fit(folder: Path) -> str:
    """How the pictures of a store were fitted; the default where there is no store."""
    try:
        fit = read_header_file(folder / HEADER_FILE)["identity"].get("fit", FIT_OF_OLD_STORES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return DataConfig.fit
    return fit if fit in FITS else DataConfig.fit


def _source_from(source: str, folder: str | Path) -> str:
    """The path of a source as seen from a folder; an address as it is."""
    return source if is_address(source) else os.path.relpath(_real(source), _real(folder))


def _real(path: str | Path) -> str:
    return os.path.realpath(Path(path).expanduser())
