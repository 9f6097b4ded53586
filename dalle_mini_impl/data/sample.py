"""Steps that all readers share: list and read files, decode a picture, turn text or fields into captions."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.util.images import decode_image
from dalle_mini_impl.util.text import printable

CAPTION_FIELDS = ("captions", "caption", "text")
"""Fields that may hold the captions; the first one that is not empty counts."""
SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
"""Accepted values of the field `split`, in lower case -> split."""


class UnusableSample(Exception):
    """A sample cannot be used; the message is `category: details`. `read_samples` catches and logs it."""


PendingSample = tuple[str, Callable[[], Pair]]
"""Name of a sample, for the log, and a function that reads it or raises `UnusableSample`."""


def read_samples(samples: Iterable[PendingSample], log: SkipLog, worker: int, workers: int) -> Iterator[Pair]:
    """Read every `workers`-th sample, starting with number `worker`, and log those that cannot be used."""
    for number, (name, read) in enumerate(samples):
        if number % workers != worker:
            continue
        try:
            pair = read()
        except UnusableSample as reason:
            log.add(printable(name), printable(str(reason)))
        else:
            yield pair


def list_files(folder: Path, log: SkipLog) -> list[Path]:
    """List all files below a folder, sorted, without hidden ones; links are followed, unreadable folders logged."""

    def log_unreadable(error: OSError) -> None:
        log.add(printable(str(error.filename)), f"unreadable folder: {error.strerror}")

    files: list[Path] = []
    visited = set()
    for root, folders, names in os.walk(folder, onerror=log_unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(root) in visited:  # a link can lead back to a folder above it
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        files += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return files


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        UnusableSample: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnusableSample(f"missing file: {path}") from error
    except (OSError, ValueError) as error:
        raise UnusableSample(f"unreadable file: {error}") from error


def decode_picture(data: bytes) -> Image.Image:
    """Decode a whole picture file, rotated upright, as RGB, or as RGBA where it has transparency.

    Raises:
        UnusableSample: the data is empty, damaged, not a picture, or above Pillow's limit on pixels.
    """
    if not data:
        raise UnusableSample("empty file: zero bytes")
    try:
        return decode_image(io.BytesIO(data))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnusableSample(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise UnusableSample("not a picture: no known format, or cut off within its first bytes") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        kind = "truncated" if "truncated" in str(error).lower() else "broken"
        raise UnusableSample(f"{kind} picture: {str(error) or type(error).__name__}") from error


def captions_from_lines(data: bytes) -> list[Caption]:
    """Read one caption per line; blank lines are left out.

    Raises:
        UnusableSample: the text is not UTF-8.
    """
    try:
        return [Caption(line) for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UnusableSample(f"caption not UTF-8: {error.reason} at byte {error.start}") from error


def fields_from_json(data: bytes) -> dict[str, Any]:
    """Read the fields of a sample's JSON file.

    Raises:
        UnusableSample: the text is not UTF-8, not JSON, or not an object.
    """
    try:
        fields = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnusableSample(f"caption not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableSample(f"malformed JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnusableSample("malformed JSON: not an object")
    return fields


def captions_from_fields(fields: dict[str, Any]) -> tuple[list[Caption], dict[str, Any]]:
    """Separate the captions from the other fields.

    Captions are the first of `captions`, `caption` and `text` that is not empty: a string, or a list of strings and
    of objects with `text` and `language`. The field `language` applies to captions that do not name their own.

    Returns:
        The captions, and the other fields.

    Raises:
        UnusableSample: the captions are of another type.
    """
    value: Any = next((fields[name] for name in CAPTION_FIELDS if fields.get(name)), [])
    captions = []
    for entry in value if isinstance(value, list) else [value]:
        caption = entry if isinstance(entry, dict) else {"text": entry}
        text = caption.get("text")
        language = caption.get("language") or fields.get("language") or ""
        if not isinstance(text, str) or not isinstance(language, str):
            raise UnusableSample("malformed caption: expected a string, or an object with text and language")
        captions.append(Caption(text, language))
    caption_fields = (*CAPTION_FIELDS, "language")
    return captions, {name: value for name, value in fields.items() if name not in caption_fields}


def make_pair(
    key: str, captions: list[Caption], details: dict[str, Any], read: Callable[[], bytes], needed: bool = True
) -> Pair:
    """Build a pair; the picture is read and decoded only when everything else is valid.

    Args:
        key: identifies the sample within its source.
        captions: white space in them is collapsed, repeated and blank ones are dropped.
        details: fields besides the captions; `split` and `may_flip` are removed from them and interpreted.
        read: returns the bytes of the picture file.
        needed: whether a pair must have a caption.

    Raises:
        UnusableSample: no caption has text though one is needed, a field is invalid, or the picture cannot be read.
    """
    texts = [Caption(" ".join(caption.text.split()), caption.language) for caption in captions]
    texts = [caption for caption in dict.fromkeys(texts) if caption.text]
    if needed and not texts:
        raise UnusableSample("empty caption: no text in it")
    details = dict(details)
    split = _split(details.pop("split", None))
    may_flip = str(details.pop("may_flip", "")).lower() in ("true", "1", "yes")
    try:
        json.dumps([key, [asdict(caption) for caption in texts], details], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnusableSample("not Unicode: the name, a caption or a field cannot be stored as text") from error
    image = decode_picture(read())
    return Pair(key=key, image=image, captions=tuple(texts), split=split, may_flip=may_flip, details=details)


def _split(value: object) -> str:
    if value in (None, ""):
        return ""
    split = SPLITS.get(str(value).lower())
    if split is None:
        raise UnusableSample(f"other split: {value!r} is neither train nor validation")
    return split
