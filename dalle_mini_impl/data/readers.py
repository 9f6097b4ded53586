"""Reads captioned pictures from a folder, a JSONL or CSV file, or WebDataset tars.

A sample that cannot be used never stops a reader: it is skipped and recorded in a `SkipLog` with the reason.
"""

import csv
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.data.sample import (
    CAPTION_FIELDS,
    PendingSample,
    UnusableSample,
    captions_from_fields,
    captions_from_lines,
    list_files,
    make_pair,
    read_bytes,
    read_samples,
)
from dalle_mini_impl.data.tar_reader import read_tars
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS
from dalle_mini_impl.util.text import printable

PATH_FIELDS = ("path", "image", "file_name")
"""Fields of a JSONL or CSV row that may hold the picture's path; the first one that is not empty counts."""
EXPECTED = "a folder of pictures with .txt captions, a .jsonl or .csv file, or .tar files"
"""The sources that can be read, for error messages."""


def read_pairs(
    source: str | Path,
    log: SkipLog,
    *,
    captions: Literal["needed", "optional"] = "needed",
    worker: int = 0,
    workers: int = 1,
) -> Iterator[Pair]:
    """Read every captioned picture of a source, in an order that depends on the source alone.

    Args:
        source: one of three kinds; hidden files are ignored in all of them.
            A folder of pictures, at any depth, each with a `.txt` file of the same name, one caption per line.
            A `.jsonl`, `.csv` or `.tsv` file whose rows have a `path`, `image` or `file_name`, relative to the file,
            and `captions`, `caption` or `text`; rows of the same picture are joined.
            WebDataset tars: a `.tar`, a folder of them, or a pattern such as `set-{000..007}.tar` or `*.tar`.
        log: receives what was skipped, and why.
        captions: `needed` skips pictures without a caption, `optional` yields them with none.
        worker: which part to read, 0 to `workers - 1`. With several processes this is
            `rank * workers_per_rank + worker`.
        workers: number of parts. They are disjoint and together cover the source.

    Raises:
        UserError: the source is missing, of no known kind, or has no picture, tar or row at all.
        ValueError: `worker` is not in 0 to `workers - 1`.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"expected worker from 0 to {workers - 1}, got {worker}")
    if not str(source):
        raise UserError(f"no source was named; expected {EXPECTED}; set data.source or name one")
    path = Path(source).expanduser()
    try:
        return _reader_for(path, log, captions == "needed", worker, workers)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _reader_for(path: Path, log: SkipLog, needed: bool, worker: int, workers: int) -> Iterator[Pair]:
    """Choose the reader by the kind of the source."""
    if path.is_dir():
        folder_log = log if worker == 0 else SkipLog()  # one worker alone reports on the folder as a whole
        files = sorted(path.iterdir())
        tars = [file for file in files if file.suffix.lower() == ".tar"]
        if not tars:
            return read_samples(_folder_samples(path, folder_log, needed), log, worker, workers)
        for file in files:
            if file.suffix.lower() in PICTURE_ENDINGS:
                folder_log.add(printable(str(file)), "beside tars: a folder is read as tars or as pictures")
        return read_tars(tars, log, needed, worker, workers)
    if path.suffix.lower() == ".jsonl" and path.is_file():
        return read_samples(_table_samples(path, _jsonl_rows(path), needed), log, worker, workers)
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return read_samples(_table_samples(path, _csv_rows(path, needed), needed), log, worker, workers)
    return read_tars(tars_of_pattern(str(path)), log, needed, worker, workers)


def tars_of_pattern(pattern: str) -> list[Path]:
    """List the tars that a path or pattern names; those that braces name but are missing stay in, to be logged."""
    names = [pattern] if os.path.exists(pattern) else _expand_braces(pattern)
    paths: list[Path] = []
    for name in names:
        is_pattern = glob.has_magic(name) and not os.path.exists(name)
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
        paths += [Path(path) for path in matches]
    if not any(path.exists() for path in paths):
        raise UserError(f"{pattern} does not exist; expected {EXPECTED}; check the path")
    tars = [path for path in dict.fromkeys(paths) if path.suffix.lower() == ".tar"]
    if not tars:
        raise UserError(f"{pattern} is none of the kinds that can be read; expected {EXPECTED}; convert it")
    return tars


def _expand_braces(pattern: str) -> list[str]:
    """Expand `{000..007}` and `{a,b}` as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        parts = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    else:
        parts = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for part in parts for name in _expand_braces(head + part + tail)]


def _folder_samples(folder: Path, log: SkipLog, needed: bool) -> list[PendingSample]:
    """Match pictures and caption files by name."""
    pictures: dict[str, list[Path]] = {}
    texts: dict[str, list[Path]] = {}
    for path in list_files(folder, log):
        ending = path.suffix.lower()
        paths_of_key = pictures if ending in PICTURE_ENDINGS else texts if ending == ".txt" else None
        if paths_of_key is not None:
            paths_of_key.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not pictures:
        raise UserError(f"{folder} holds neither pictures nor .tar files; expected {EXPECTED}; check the path")
    samples: list[PendingSample] = []
    for key in sorted(pictures.keys() | texts.keys()):
        first, *others = pictures.get(key, [None])
        if first is None:
            samples += [(str(path), _refusal("no picture: none has the same name")) for path in texts[key]]
            continue
        samples.append((str(first), _folder_sample(key, first, texts.get(key, []), needed)))
        # The usual cause is one picture in two formats, which must not end up in both splits.
        samples += [(str(path), _refusal(f"same name: {first.name} was taken instead")) for path in others]
    return samples


def _refusal(reason: str) -> Callable[[], Pair]:
    def refuse() -> Pair:
        raise UnusableSample(reason)

    return refuse


def _folder_sample(key: str, picture: Path, texts: list[Path], needed: bool) -> Callable[[], Pair]:
    def read() -> Pair:
        if needed and not texts:
            raise UnusableSample(f"no caption: no {picture.stem}.txt beside it")
        captions = [caption for path in texts for caption in captions_from_lines(read_bytes(path))]
        return make_pair(key, captions, {}, lambda: read_bytes(picture), needed)

    return read


Row = tuple[str, dict[str, Any] | UnusableSample]
"""File and line number, for messages, and the row's fields or the reason why it cannot be used."""


def _jsonl_rows(table: Path) -> Iterator[Row]:
    with table.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{table}:{number}"
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                yield where, UnusableSample(f"caption not UTF-8: {error.reason}")
            except (ValueError, RecursionError) as error:
                yield where, UnusableSample(f"malformed line: {error}")
            else:
                yield where, fields if isinstance(fields, dict) else UnusableSample("malformed line: not a JSON object")


def _csv_rows(table: Path, needed: bool) -> Iterator[Row]:
    # Bytes that are not UTF-8 become surrogates, so that they make one row unusable and not the whole file.
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t" if table.suffix.lower() == ".tsv" else ",", strict=True)
        header: list[str] | None = None
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield f"{table}:{rows.line_num}", UnusableSample(f"malformed line: {error}")
                continue
            if row is None:
                return
            if header is None:
                header = _check_header(table, row, needed)
            elif row:
                yield f"{table}:{rows.line_num}", _csv_row(header, row)


def _csv_row(header: list[str], row: list[str]) -> dict[str, Any] | UnusableSample:
    if len(row) > len(header):
        return UnusableSample("malformed line: more fields than columns; a caption with commas needs quotes")
    return {name: text for name, text in zip(header, row, strict=False) if text}


def _check_header(table: Path, row: list[str], needed: bool) -> list[str]:
    header = [name.strip().lower() for name in row]
    if not set(header) & set(PATH_FIELDS) or (needed and not set(header) & set(CAPTION_FIELDS)):
        raise UserError(
            f"{table} starts with the columns {', '.join(header) or '(none)'}; expected a first line "
            f"naming one of {', '.join(PATH_FIELDS)} and one of {', '.join(CAPTION_FIELDS)}; add it"
        )
    return header


def _table_samples(table: Path, rows: Iterable[Row], needed: bool) -> list[PendingSample]:
    """Join the rows of each picture."""
    pictures: dict[str, tuple[str, dict[str, Any], list[Caption]]] = {}
    samples: list[PendingSample] = []
    for where, fields in rows:
        try:
            if isinstance(fields, UnusableSample):
                raise fields
            name = _path_in(fields)
            if name is None:
                raise UnusableSample(f"no path: expected one of {', '.join(PATH_FIELDS)}")
            captions, details = captions_from_fields(fields)
        except UnusableSample as reason:
            samples.append((where, _refusal(str(reason))))
        else:
            # One row per caption is common, so rows that name the same picture belong together.
            details = {field: value for field, value in details.items() if field not in PATH_FIELDS}
            pictures.setdefault(name, (where, details, []))[2].extend(captions)
    samples += [
        (f"{where} ({name})", _table_sample(table.parent / name, name, captions, details, needed))
        for name, (where, details, captions) in pictures.items()
    ]
    if not samples:
        raise UserError(f"{table} has no rows; expected one per picture with its path and caption; fill it")
    return samples


def _path_in(fields: dict[str, Any]) -> str | None:
    """The picture's path in a row, None if it names none."""
    name = next((fields[field] for field in PATH_FIELDS if fields.get(field)), None)
    return name if isinstance(name, str) else None


def _table_sample(
    path: Path, key: str, captions: list[Caption], details: dict[str, Any], needed: bool
) -> Callable[[], Pair]:
    return lambda: make_pair(key, captions, details, lambda: read_bytes(path), needed)


def pictures_of_table(table: Path) -> list[str]:
    """Paths of the pictures that a `.jsonl`, `.csv` or `.tsv` file names, as they stand there, each once."""
    rows = _jsonl_rows(table) if table.suffix.lower() == ".jsonl" else _csv_rows(table, needed=False)
    names = (_path_in(fields) for _, fields in rows if isinstance(fields, dict))
    return list(dict.fromkeys(name for name in names if name is not None))
