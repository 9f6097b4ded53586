"""Matches the pictures of a folder with the files that hold their captions, by their names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.sample import (
    MAX_CAPTION_BYTES,
    MAX_JSON_BYTES,
    PendingSample,
    UnusableSample,
    list_files,
    make_pair,
    read_bytes,
    read_captions,
    refusal,
)
from dalle_mini_impl.util.images import is_drawing, picture_kind, unreadable_format

CAPTION_ENDINGS = (".txt", ".caption", ".cap")
"""Endings of files with one caption per line, in lower case; of several kinds beside a picture the first counts."""


@dataclass
class _Files:
    """Files of one name, by what they hold."""

    pictures: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    """Pictures of a format that cannot be read."""
    texts: dict[str, list[Path]] = field(default_factory=dict)
    """Ending -> files."""
    tables: list[Path] = field(default_factory=list)
    """JSON files."""


def folder_samples(folder: Path, log: SkipLog, note_log: SkipLog, needed: bool) -> list[PendingSample]:
    """List the samples of a folder; empty if it holds no picture at all.

    Args:
        folder: searched at any depth.
        log: receives what was skipped in the folder as a whole.
        note_log: receives, while samples are read, what was left out of them.
        needed: whether pictures without a caption are skipped.
    """
    files_of_key: dict[str, _Files] = {}
    for path in list_files(folder, log):
        kind, ending = picture_kind(path), path.suffix.lower()
        if kind == "other" and ending not in (*CAPTION_ENDINGS, ".json"):
            continue
        files = files_of_key.setdefault(path.relative_to(folder).with_suffix("").as_posix(), _Files())
        if kind != "other":
            (files.pictures if kind == "readable" else files.unreadable).append(path)
        elif ending == ".json":
            files.tables.append(path)
        else:
            files.texts.setdefault(ending, []).append(path)
    if not any(files.pictures or files.unreadable for files in files_of_key.values()):
        return []
    for files in files_of_key.values():
        files.pictures.sort(key=is_drawing)  # a picture made from a drawing shows what the drawing was meant to be
    _join_names_with_ending(files_of_key)
    return [
        sample for key in sorted(files_of_key) for sample in _samples_of_key(key, files_of_key[key], note_log, needed)
    ]


def _join_names_with_ending(files_of_key: dict[str, _Files]) -> None:
    """Give `a.jpg.txt` to `a.jpg`, if that has no captions of its own."""
    for key, files in list(files_of_key.items()):
        owner = files_of_key.get(Path(key).with_suffix("").as_posix()) if picture_kind(key) != "other" else None
        if owner is None or files.pictures or files.unreadable or owner.texts or owner.tables:
            continue
        if any(path.suffix == Path(key).suffix for path in owner.pictures):
            owner.texts, owner.tables = files.texts, files.tables
            del files_of_key[key]


def _samples_of_key(key: str, files: _Files, log: SkipLog, needed: bool) -> list[PendingSample]:
    """The sample of one name, and a refusal for each file that cannot be part of it."""
    first = files.pictures[0] if files.pictures else None
    unreadable: list[PendingSample] = [(str(path), refusal(unreadable_format(path))) for path in files.unreadable]
    texts = next((files.texts[ending] for ending in CAPTION_ENDINGS if ending in files.texts), [])
    if first is None:
        reason = "no picture: none has the same name"
        return unreadable or [(str(path), refusal(reason)) for path in texts]
    # The usual cause is one picture in two formats, which must not end up in both splits.
    reason = f"same name: {first.name} was taken instead"
    same_name: list[PendingSample] = [(str(path), refusal(reason)) for path in [*files.pictures[1:], *files.unreadable]]
    return [(str(first), _folder_sample(key, first, texts, [] if texts else files.tables, log, needed)), *same_name]


def _folder_sample(
    key: str, picture: Path, texts: list[Path], tables: list[Path], log: SkipLog, needed: bool
) -> Callable[[], Pair]:
    def read() -> Pair:
        if needed and not texts and not tables:
            raise UnusableSample(f"no caption: no {picture.stem}.txt beside it")
        captions, details = read_captions(
            [partial(read_bytes, path, MAX_CAPTION_BYTES) for path in texts],
            [partial(read_bytes, path, MAX_JSON_BYTES) for path in tables],
            partial(log.note, str(picture)),
            needed,
        )
        return make_pair(key, captions, details, lambda: read_bytes(picture), needed)

    return read
