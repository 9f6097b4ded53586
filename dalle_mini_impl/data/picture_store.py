"""Pictures of one size in one memory-mapped file, so that training reads any of them at once.

A store is a folder with `pixels.npy` (n, H, W, 4) uint8 RGBA, or the pictures as PNG or JPEG (`encoded_pictures.py`),
what else is known of each picture (`entries.py`), `sources.json` (the files that it was built from, with sizes and
times) and `store.json` (its settings, and checksums of the other files). Because pictures are read by number, a run can
shuffle them, resume at any step and divide them among processes exactly.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dalle_mini_impl.config.data import FITS, DataConfig, fits_into
from dalle_mini_impl.data.checksums import check_checksums, open_array, read_header_file, verify_once
from dalle_mini_impl.data.encoded_pictures import PICTURE_INDEX, PICTURES_FILE, EncodedPictures
from dalle_mini_impl.data.entries import ENTRIES_FILE, ENTRY_FILES, PictureEntries
from dalle_mini_impl.data.mixture import describe_source_changes, repeat_rows
from dalle_mini_impl.data.remote import is_address
from dalle_mini_impl.data.store_builder import build_store
from dalle_mini_impl.data.store_files import HEADER_FILE, PIXELS_FILE, SKIPPED_FILE, SOURCES_FILE, source_from
from dalle_mini_impl.data.store_size import (
    frame_of_header,
    height_and_width,
    rebuild_advice,
    size_in_header,
)
from dalle_mini_impl.util.errors import UserError

FIT_OF_OLD_STORES = "crop"
"""How pictures were fitted where a store does not say."""


@dataclass(frozen=True)
class PictureStore:
    """Pictures of one split."""

    pixels: np.ndarray | EncodedPictures
    """(n, H, W, 4) uint8 RGBA of the whole store, memory-mapped, or what decodes them."""
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
        config = replace(config, store_format=header["identity"]["store_format"])  # for what rebuilds it
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


def _read_store(folder: Path) -> tuple[dict[str, Any], np.ndarray | EncodedPictures, PictureEntries]:
    """Header, memory-mapped pictures and entries of a store, verified.

    Raises:
        UserError: the folder is no store, or is damaged.
    """
    try:
        header = read_header_file(folder / HEADER_FILE)
        header["identity"].setdefault("fit", FIT_OF_OLD_STORES)
        header["identity"].setdefault("every", 1)
        form = header["identity"].setdefault("store_format", "pixels")
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
        names = [name for name in (*ENTRY_FILES, PIXELS_FILE, PICTURE_INDEX, SOURCES_FILE) if name in checksums]
        verify_once(folder, names, lambda: check_checksums(folder, names, checksums))
        entries = PictureEntries.open(folder)
        pixels: np.ndarray | EncodedPictures
        if form == "pixels":
            pixels = open_array(folder / PIXELS_FILE)
        else:
            pixels = EncodedPictures(folder, frame)
            verify_once(folder, [PICTURES_FILE, PICTURE_INDEX], pixels.verify)
        if pixels.dtype != np.uint8 or pixels.shape != (len(entries), *frame, 4):
            raise ValueError(f"{len(entries)} pictures of {frame} are described, got {pixels.dtype} {pixels.shape}")
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
    if config.sources and others != [source_from(path, folder) for path in config.paths]:
        was = ", ".join(others) or built["source"]
        raise UserError(
            f"store {folder} was built from {was}, the config names {', '.join(config.paths)}; "
            f"delete the store or name another"
        )
    same_path = header.get("source_from_here") == source_from(config.source, folder)
    expected = {
        "source": built["source"] if same_path else config.source,
        "store_size": size_in_header(config.store_frame) or built["store_size"],
        "validation": config.validation,
        "fit": config.fit,
        "every": config.every,
        "store_format": built["store_format"] if config.store_format == "auto" else config.store_format,
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
        content = PIXELS_FILE if PIXELS_FILE in checksums else PICTURE_INDEX
        return f"{checksums[content][:8]}{checksums[ENTRIES_FILE][:8]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def store_fit(folder: Path) -> str:
    """How the pictures of a store were fitted; the default where there is no store."""
    try:
        fit = read_header_file(folder / HEADER_FILE)["identity"].get("fit", FIT_OF_OLD_STORES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return DataConfig.fit
    return fit if fit in FITS else DataConfig.fit
