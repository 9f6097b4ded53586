"""What every reader does with one sample: bytes to a decoded picture, text or fields to captions."""

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
SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


class UnusableSample(Exception):
    """Why one sample cannot be used: `category: what exactly`. Caught by `read_samples`."""


PendingSample = tuple[str, Callable[[], Pair]]
"""Name of a sample, for the log, and what reads it."""


def read_samples(jobs: Iterable[PendingSample], log: SkipLog, worker: int, workers: int) -> Iterator[Pair]:
    """Read this worker's share of the samples, noting those that cannot be used."""
    for number, (name, read) in enumerate(jobs):
        if number % workers != worker:
            continue
        try:
            pair = read()
        except UnusableSample as skip:
            log.add(printable(name), printable(str(skip)))
        else:
            yield pair


def list_files(folder: Path, log: SkipLog) -> list[Path]:
    """All files below a folder that are not hidden, links followed; folders that cannot be read are noted."""

    def unreadable(error: OSError) -> None:
        log.add(printable(str(error.filename)), f"unreadable folder: {error.strerror}")

    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises:
        UnusableSample: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnusableSample(f"missing file: {path}") from error
    except (OSError, ValueError) as error:
        raise UnusableSample(f"unreadable file: {error}") from error


def decode_picture(data: bytes) -> Image.Image:
    """Decode a whole picture, upright, as RGB, or as RGBA where it has transparency.

    Raises:
        UnusableSample: it is empty, broken, no picture, or larger than Pillow's limit.
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
    """One caption per line that is not blank.

    Raises:
        UnusableSample: the text is not UTF-8.
    """
    try:
        return [Caption(line) for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UnusableSample(f"caption not UTF-8: {error.reason} at byte {error.start}") from error


def fields_from_json(data: bytes) -> dict[str, Any]:
    """Fields of a sample's JSON file.

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
    """Divide fields into captions and the rest.

    Captions are the first filled one of `captions`, `caption` and `text`: a string, or a list of strings and
    of objects with `text` and `language`. A field `language` is that of captions that do not name their own.

    Raises:
        UnusableSample: the captions are of another type.
    """
    found: Any = next((fields[name] for name in CAPTION_FIELDS if fields.get(name)), [])
    captions = []
    for entry in found if isinstance(found, list) else [found]:
        caption = entry if isinstance(entry, dict) else {"text": entry}
        text, language = caption.get("text"), caption.get("language") or fields.get("language") or ""
        if not isinstance(text, str) or not isinstance(language, str):
            raise UnusableSample("malformed caption: expected a string, or an object with text and language")
        captions.append(Caption(text, language))
    taken = (*CAPTION_FIELDS, "language")
    return captions, {name: value for name, value in fields.items() if name not in taken}


def make_pair(key: str, captions: list[Caption], details: dict[str, Any], read: Callable[[], bytes]) -> Pair:
    """Put a sample together; the picture is read and decoded only when everything else is in order.

    Args:
        key: the sample's name.
        captions: may be empty or blank, which is then the reason to skip.
        details: fields besides the captions; `split` and `may_flip` are taken out of them.
        read: gives the picture file's bytes.

    Raises:
        UnusableSample: anything about the sample is unusable.
    """
    texts = [Caption(" ".join(caption.text.split()), caption.language) for caption in captions]
    texts = [caption for caption in dict.fromkeys(texts) if caption.text]
    if not texts:
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
