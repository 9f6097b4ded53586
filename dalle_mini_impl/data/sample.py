"""Steps that all readers share: list and read files, decode a picture, turn text or fields into captions."""

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dalle_mini_impl.data.languages import LANGUAGE
from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.data.remote import RemotePath, SourcePath
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.util import read_files
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import decode_image
from dalle_mini_impl.util.read_files import MAX_PICTURE_BYTES
from dalle_mini_impl.util.text import decode_text, printable, split_lines

CAPTION_FIELDS = ("captions", "caption", "text")
"""Fields that may hold the captions; the first one that holds any counts."""
OTHER_CAPTION_FIELDS = ("title", "description", "prompt", "sentences", "sentence", "alt_text", "alt")
"""Fields whose text is taken for captions where no other captions are given."""
TEXT_OF_CAPTION = ("text", "caption", "raw")
"""Fields of a caption that is an object, any of which may hold its text."""
CAPTION_IN_LANGUAGE = re.compile(rf"(?:captions?|text|title)_({LANGUAGE})", re.IGNORECASE)
"""Name of a field with captions in one language, such as `caption_en`."""
LINE_IN_LANGUAGE = re.compile(rf"({LANGUAGE})\.utf8=(.*)")
"""A line of the caption files of Tux Paint: `de.utf8=Eine Ente.`"""
NO_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
"""Control characters that are not white space; captions have spaces instead."""
MAX_CAPTION_BYTES = 1 << 20
"""Largest file with the captions of one picture."""
MAX_JSON_BYTES = 1 << 24
"""Largest JSON file of one picture, which may hold other values besides captions."""
MAX_DEPTH = 50
"""How deeply the other fields of a picture may be nested."""
SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "unused": "unused",
}  # fmt: skip
"""Accepted values of the field `split`, in lower case -> split."""


class UnusableSample(Exception):
    """A sample cannot be used; the message is `category: details`. `read_sample` catches and logs it.

    Args:
        message: see above.
        may_be_read_later: whether it could not be read for the moment.
    """

    def __init__(self, message: str, *, may_be_read_later: bool = False) -> None:
        super().__init__(message)
        self.may_be_read_later = may_be_read_later


def may_be_read_later(error: BaseException) -> bool:
    """Whether what could not be read is there, and may be read at another time: its disk or connection failed."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def list_files(folder: Path, log: SkipLog, unlisted: list[Path] | None = None) -> list[Path]:
    """List all files below a folder, sorted, without hidden ones; links are followed.

    Args:
        folder: to be listed.
        log: records folders that cannot be listed.
        unlisted: to which folders that cannot be listed are appended; then links to folders that were listed already
            are recorded in `log` too.
    """

    def log_unreadable(error: OSError) -> None:
        # An error in the middle of a listing names no folder.
        name = Path(error.filename or folder)
        log.add(printable(str(name)), f"unreadable folder: {error.strerror}")
        if unlisted is not None:
            unlisted.append(name)

    files: list[Path] = []
    visited = set()
    for root, folders, names in os.walk(folder, onerror=log_unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(root) in visited:  # a link can lead back to a folder above it
            if unlisted is not None:
                log.add(printable(root), "link to a folder listed already: its pictures count once")
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        files += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return files


def read_bytes(path: SourcePath, limit: int = MAX_PICTURE_BYTES) -> bytes:
    """Read a file.

    Args:
        path: of the file.
        limit: size in bytes above which it is refused.

    Raises:
        UnusableSample: the file is missing, cannot be read, is a pipe or a device, or is too large.
    """
    try:
        return path.read_bytes(limit) if isinstance(path, RemotePath) else read_files.read_bytes(path, limit)
    except FileNotFoundError as error:
        raise UnusableSample(f"missing file: {path}") from error
    except (OSError, ValueError, MemoryError) as error:
        raise UnusableSample(f"unreadable file: {error}", may_be_read_later=may_be_read_later(error)) from error


def decode_picture(data: bytes) -> Image.Image:
    """Decode a whole picture file, rotated upright, as RGB, or as RGBA where it has transparency.

    Raises:
        UnusableSample: the data is empty, damaged, not a picture, or above Pillow's limit on pixels, or its format
            needs an extra that is not installed.
    """
    if not data:
        raise UnusableSample("empty file: zero bytes")
    try:
        return decode_image(io.BytesIO(data))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnusableSample(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise UnusableSample("not a picture: no known format, or cut off within its first bytes") from error
    except UserError as error:
        raise UnusableSample(f"unreadable format: {error}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        kind = "truncated" if "truncated" in str(error).lower() else "broken"
        raise UnusableSample(f"{kind} picture: {str(error) or type(error).__name__}") from error


def captions_from_lines(data: bytes, language: str = "") -> list[Caption]:
    r"""Read one caption per line; blank lines are left out.

    Only `\n`, `\r\n` and `\r` end a line. A line such as `de.utf8=Eine Ente.` is a caption with its language; the
    others are in `language`.

    Raises:
        UnusableSample: the text is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    captions = []
    for line in split_lines(_decode(data)):
        translated = LINE_IN_LANGUAGE.fullmatch(line)
        caption = Caption(translated[2], translated[1]) if translated else Caption(line, language)
        if caption.text.strip():
            captions.append(caption)
    return captions


def _decode(data: bytes) -> str:
    try:
        return decode_text(data)
    except ValueError as error:
        raise UnusableSample(f"caption not UTF-8: {error}") from error


def load_json(text: str) -> Any:
    """Read JSON in which NaN and infinity, which some programs write, count as missing.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fields_from_json(data: bytes) -> dict[str, Any]:
    """Read the fields of a sample's JSON file.

    Raises:
        UnusableSample: the text is not UTF-8, not JSON, or not an object.
    """
    try:
        fields = load_json(_decode(data))
    except ValueError as error:
        raise UnusableSample(f"malformed JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnusableSample("malformed JSON: not an object")
    return fields


def captions_from_fields(
    fields: dict[str, Any], other_names: bool = True, note: Callable[[str], object] = bool
) -> tuple[list[Caption], dict[str, Any]]:
    """Separate the captions from the other fields.

    Captions are the first of `captions`, `caption` and `text` that holds any, else fields such as `caption_en`, else
    the first of `OTHER_CAPTION_FIELDS`. Names are the same in upper case. A value is a string, an object with `text`
    and `language`, an object of texts by language such as `{"en": "a cat"}`, or a list of these. The field `language`
    applies to captions that do not name their own.

    Args:
        fields: of a table's row or a JSON file.
        other_names: also look for captions in fields of other names than the first three.
        note: receives what was left out although other captions are used.

    Returns:
        The captions, and the other fields.

    Raises:
        UnusableSample: there are captions, but all are of another type.
    """
    names: dict[str, str] = {}
    for name in fields:
        names.setdefault(name.lower(), name)
    groups = [[names[name]] for name in CAPTION_FIELDS if name in names]
    if other_names:
        in_languages = [name for name in fields if CAPTION_IN_LANGUAGE.fullmatch(name)]
        groups += [in_languages, *([names[name]] for name in OTHER_CAPTION_FIELDS if name in names)]
    language = fields.get(names.get("language", ""))
    malformed = 0
    captions: list[Caption] = []
    used: list[str] = []
    for group in groups:
        for name in group:
            match = CAPTION_IN_LANGUAGE.fullmatch(name)
            for caption in _captions_of(fields[name], match[1] if match else language):
                if caption is None:
                    malformed += 1
                elif match is None or any(character.isalpha() for character in caption.text):  # no `caption_id: 17`
                    captions.append(caption)
        if captions:
            used = group
            break
    reason = "malformed caption: expected a string, or an object with text and language"
    if malformed and not captions:
        raise UnusableSample(reason)
    if malformed:
        note(reason)
    left_out = {*used, *(names[name] for name in (*CAPTION_FIELDS, "language") if name in names)}
    return captions, {name: value for name, value in fields.items() if name not in left_out}


def _captions_of(value: Any, language: object) -> Iterator[Caption | None]:
    """The captions in the value of a field, None for each that is of another type."""
    code = language if isinstance(language, str) else ""
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, str):
            if entry.strip():
                yield Caption(entry, code)
        elif isinstance(entry, dict) and (name := next((key for key in TEXT_OF_CAPTION if key in entry), None)):
            own = entry.get("language")
            text = entry[name]
            yield Caption(text, own if own and isinstance(own, str) else code) if isinstance(text, str) else None
        elif isinstance(entry, dict) and entry and all(re.fullmatch(LANGUAGE, key) for key in entry):
            for own, texts in entry.items():
                for text in texts if isinstance(texts, list) else [texts]:
                    yield Caption(text, own) if isinstance(text, str) else None
        elif entry not in (None, {}):
            yield None


def read_captions(
    texts: Sequence[tuple[str, Callable[[], bytes]]],
    tables: Sequence[Callable[[], bytes]],
    note: Callable[[str], object],
    needed: bool,
) -> tuple[list[Caption], dict[str, Any]]:
    """Read the captions of one picture from its files; one that cannot be used does not make the others useless.

    Lines that together are the caption of a JSON file are one caption, as img2dataset writes it into both.

    Args:
        texts: language, or nothing, and what reads a file with one caption per line, or raises `UnusableSample`.
        tables: each reads a JSON file with captions and other fields.
        note: receives what was left out although the sample is used.
        needed: whether there must be a caption.

    Returns:
        The captions, and the other fields.

    Raises:
        UnusableSample: a caption is needed, no file has captions, and one of them cannot be used.
    """
    captions: list[Caption] = []
    details: dict[str, Any] = {}
    failures: list[UnusableSample] = []
    for language, read in texts:
        try:
            captions += captions_from_lines(read(), language)
        except UnusableSample as failure:
            failures.append(failure)
    has_text = any(caption.text.strip() for caption in captions)
    for read in tables:
        try:
            fields = fields_from_json(read())
            details |= fields
            more, details = captions_from_fields(details, other_names=not has_text, note=note)
            if len(captions) > 1 and [_in_one_line(captions)] == [_in_one_line([caption]) for caption in more]:
                captions = []
            captions += more
        except UnusableSample as failure:
            details = {name: value for name, value in details.items() if name.lower() not in CAPTION_FIELDS}
            failures.append(failure)
    if needed and failures and not any(caption.text.strip() for caption in captions):
        raise failures[0]
    for failed in failures:
        note(str(failed))
    return captions, details


def _in_one_line(captions: Sequence[Caption]) -> str:
    return " ".join(" ".join(caption.text for caption in captions).split())


def make_pair(
    key: str, captions: list[Caption], details: dict[str, Any], read: Callable[[], bytes], needed: bool = True
) -> Pair:
    """Build a pair; the picture is read and decoded only when everything else is valid.

    Args:
        key: identifies the sample within its source.
        captions: white space and control characters in them become single spaces, marks at their ends are removed as
            in prompts (`clean_caption`), repeated and blank ones are dropped.
        details: fields besides the captions; `split` and `may_flip` are removed from them and interpreted.
        read: returns the bytes of the picture file.
        needed: whether a pair must have a caption.

    Raises:
        UnusableSample: no caption has text though one is needed, a field is invalid, or the picture cannot be read.
    """
    texts = [Caption(_clean(caption.text), caption.language) for caption in captions]
    texts = [caption for caption in dict.fromkeys(texts) if caption.text]
    if needed and not texts:
        raise UnusableSample("empty caption: no text in it")
    details = dict(details)
    split = _split(details.pop("split", None))
    may_flip = str(details.pop("may_flip", "")).lower() in ("true", "1", "yes")
    if _depth(details) > MAX_DEPTH:
        raise UnusableSample(f"malformed fields: nested more than {MAX_DEPTH} deep")
    try:
        json.dumps([key, [asdict(caption) for caption in texts], details], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnusableSample("not Unicode: the name, a caption or a field cannot be stored as text") from error
    content = read()
    image = decode_picture(content)
    return Pair(
        key=key,
        image=image,
        captions=tuple(texts),
        split=split,
        may_flip=may_flip,
        details=details,
        content=content,
    )


def _clean(text: str) -> str:
    """A caption in one line, without the marks that prompts lose too."""
    return clean_caption(" ".join(NO_TEXT.sub(" ", text).split()))


def _depth(value: object) -> int:
    """How deeply lists and objects are nested, counted without recursion, up to one above `MAX_DEPTH`."""
    layer = [value]
    for depth in range(MAX_DEPTH + 1):
        inner: list[object] = []
        for part in layer:
            inner += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if not inner:
            return depth
        layer = inner
    return MAX_DEPTH + 1


def _split(value: object) -> str:
    if value in (None, ""):
        return ""
    split = SPLITS.get(str(value).lower())
    if split is None:
        raise UnusableSample(f"other split: {value!r} is neither train nor validation")
    return split
