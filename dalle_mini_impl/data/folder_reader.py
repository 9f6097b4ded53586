"""Matches the pictures of a folder with the files that hold their captions, by their names."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dalle_mini_impl.data.img2dataset import STATS_FILE, log_failures
from dalle_mini_impl.data.languages import language_of_name
from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.parts import PendingSample, refusal
from dalle_mini_impl.data.remote import SourcePath
from dalle_mini_impl.data.sample import (
    MAX_CAPTION_BYTES,
    MAX_JSON_BYTES,
    UnusableSample,
    make_pair,
    read_bytes,
    read_captions,
)
from dalle_mini_impl.data.tables import TablePicture, join_rows
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import is_drawing, picture_kind, unreadable_format

CAPTION_ENDINGS = (".txt", ".caption", ".cap")
"""Endings of files with one caption per line, in lower case; of several kinds beside a picture the first counts."""

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Tables inside a folder whose rows hold captions of the pictures below, as in image folders of Hugging Face."""


@dataclass(slots=True)
class _Files:
    """Files of one name, by what they hold. There may be millions, so what is empty takes no memory."""

    pictures: tuple[SourcePath, ...] = ()
    unreadable: tuple[SourcePath, ...] = ()
    """Pictures of a format that cannot be read."""
    texts: tuple[SourcePath, ...] = ()
    """Files with one caption per line."""
    tables: tuple[SourcePath, ...] = ()
    """JSON files."""
    translations: tuple[tuple[str, tuple[SourcePath, ...]], ...] = ()
    """Language in the name, and files with captions in it."""
    rows: tuple[TablePicture, ...] = ()
    """What tables of the folder say of the picture."""

    def captions(self) -> list[tuple[str, SourcePath]]:
        """Language, or nothing, and path of each file with captions; the first kind of each language counts."""
        kinds = [("", self.texts), *sorted(dict(self.translations).items(), key=lambda kind: kind[0])]
        return [(language, path) for language, texts in kinds for path in _first_kind(texts)]


def _first_kind(texts: Sequence[SourcePath]) -> list[SourcePath]:
    kinds = ([path for path in texts if path.suffix.lower() == ending] for ending in CAPTION_ENDINGS)
    return next((paths for paths in kinds if paths), [])


def folder_samples(
    folder: SourcePath, listed: Sequence[SourcePath], log: SkipLog, note_log: SkipLog, needed: bool
) -> Iterator[PendingSample] | None:
    """The samples of a folder, made one by one so that few are in memory; None if it holds no picture at all.

    Args:
        folder: searched at any depth.
        listed: all its files.
        log: receives what was skipped in the folder as a whole.
        note_log: receives, while samples are read, what was left out of them.
        needed: whether pictures without a caption are skipped.
    """
    files_of_key: dict[str, _Files] = {}
    metadata: list[SourcePath] = []
    for path in listed:
        if path.name in METADATA_FILES:
            metadata.append(path)
        elif STATS_FILE.fullmatch(path.name):
            log_failures(path, log)
            continue
        kind, ending = picture_kind(path.name), path.suffix.lower()
        if kind == "other" and ending not in (*CAPTION_ENDINGS, ".json"):
            continue
        files = files_of_key.setdefault(path.relative_to(folder).with_suffix("").as_posix(), _Files())  # type: ignore[arg-type]
        if kind != "other":
            if kind == "readable":
                files.pictures += (path,)
            else:
                files.unreadable += (path,)
        elif ending == ".json":
            files.tables += (path,)
        else:
            files.texts += (path,)
    if not any(files.pictures or files.unreadable for files in files_of_key.values()):
        return None
    for files in files_of_key.values():
        # A picture made from a drawing shows what the drawing was meant to be.
        files.pictures = tuple(sorted(files.pictures, key=lambda path: is_drawing(path.name)))
    _join_translations(files_of_key)
    _join_names_with_ending(files_of_key)
    refused = [one for table in metadata for one in _join_rows_of_table(table, files_of_key, log, needed)]
    samples = (
        sample for key in sorted(files_of_key) for sample in _samples_of_key(key, files_of_key[key], note_log, needed)
    )
    return itertools.chain(samples, refused)


def _join_translations(files_of_key: dict[str, _Files]) -> None:
    """Give `a.de.txt` to the picture `a`, or to the name `a.jpg` for `a.jpg.de.txt`."""
    for key, files in list(files_of_key.items()):
        stem, language = language_of_name(key)
        owner = files_of_key.get(stem)
        if not language or not files.texts or files.pictures or files.unreadable:
            continue
        if owner is None and picture_kind(stem) != "other":
            owner = files_of_key.setdefault(stem, _Files())
        if owner is not None:
            owner.translations += ((language, files.texts),)
            files.texts = ()


def _join_rows_of_table(
    table: SourcePath, files_of_key: dict[str, _Files], log: SkipLog, needed: bool
) -> list[PendingSample]:
    """Give the rows of a table in the folder to the pictures that they name; returns refusals of those without one."""
    try:
        rows, refused = join_rows(table, log, needed)
    except (UserError, OSError) as error:
        log.add(str(table), f"unusable table: {error}")
        return []
    files_of_picture = {
        os.path.normpath(str(path)): files
        for files in files_of_key.values()
        for path in (*files.pictures, *files.unreadable)
    }
    for name, row in rows.items():
        files = files_of_picture.get(os.path.normpath(str(table.parent / name)))
        if files is None:
            refused.append((row.where, f"no picture: {name} is not in the folder"))
        else:
            files.rows += (row,)
    return [(where, refusal(reason)) for where, reason in refused]


def _join_names_with_ending(files_of_key: dict[str, _Files]) -> None:
    """Give `a.jpg.txt` to `a.jpg`, if that has no captions of its own."""
    for key, files in list(files_of_key.items()):
        owner = files_of_key.get(Path(key).with_suffix("").as_posix()) if picture_kind(key) != "other" else None
        if owner is None or files.pictures or files.unreadable or owner.captions() or owner.tables:
            continue
        if any(path.suffix == Path(key).suffix for path in owner.pictures):
            owner.texts, owner.tables, owner.translations = files.texts, files.tables, files.translations
            del files_of_key[key]


def _samples_of_key(key: str, files: _Files, log: SkipLog, needed: bool) -> list[PendingSample]:
    """The sample of one name, and a refusal for each file that cannot be part of it."""
    first = files.pictures[0] if files.pictures else None
    unreadable: list[PendingSample] = [(str(path), refusal(unreadable_format(path.name))) for path in files.unreadable]
    if first is None:
        reason = "no picture: none has the same name"
        return unreadable or [(str(path), refusal(reason)) for _, path in files.captions()]
    # The usual cause is one picture in two formats, which must not end up in both splits.
    reason = f"same name: {first.name} was taken instead"
    same_name: list[PendingSample] = [(str(path), refusal(reason)) for path in [*files.pictures[1:], *files.unreadable]]
    return [(str(first), _folder_sample(key, first, files, log, needed)), *same_name]


def _folder_sample(key: str, picture: SourcePath, files: _Files, log: SkipLog, needed: bool) -> Callable[[], Pair]:
    def read() -> Pair:
        texts = files.captions()
        tables = () if files.texts else files.tables
        if texts or tables:
            captions, details = read_captions(
                [(language, partial(read_bytes, path, MAX_CAPTION_BYTES)) for language, path in texts],
                [partial(read_bytes, path, MAX_JSON_BYTES) for path in tables],
                partial(log.note, str(picture)),
                needed,
            )
        elif files.rows:
            captions = [caption for row in files.rows for caption in row.captions]
            details = files.rows[0].details
        elif needed:
            raise UnusableSample(f"no caption: no {picture.stem}.txt beside it")
        else:
            captions, details = [], {}
        return make_pair(key, captions, details, lambda: read_bytes(picture), needed)

    return read
