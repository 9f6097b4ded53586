"""Reads captioned pictures from a folder, a JSONL or CSV file, or WebDataset tars, here or at an address.

A sample that cannot be used never stops a reader: it is skipped and recorded in a `SkipLog` with the reason.
"""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from dalle_mini_impl.data.folder_reader import folder_samples
from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.data.remote import RemotePath, SourcePath, is_address, source_path
from dalle_mini_impl.data.sample import (
    PendingSample,
    UnusableSample,
    make_pair,
    read_bytes,
    read_samples,
    refusal,
)
from dalle_mini_impl.data.tables import TABLE_ENDINGS, join_rows, path_of_row, read_rows
from dalle_mini_impl.data.tar_reader import is_tar, read_tars
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import picture_kind, unreadable_format

EXPECTED = "a folder of pictures with .txt captions, a .jsonl or .csv file, or .tar files"
"""The sources that can be read, for error messages."""
BRACES = re.compile(r"\{([^{}]*)\}")
"""Braces of a pattern without others inside."""
MAX_BRACES = 20
"""Most pairs of braces in a pattern."""
MAX_NAMES = 300_000
"""Most names that a pattern may stand for."""
MAX_PATTERN_CHARACTERS = 1 << 25
"""Most characters of all names together that a pattern may stand for."""


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
        source: one of three kinds, here or at an address that fsspec knows, such as `s3://bucket/set-{000..007}.tar`;
            hidden files are ignored in all of them.
            A folder of pictures, at any depth, each with a `.txt`, `.caption` or `.cap` file of the same name, one
            caption per line, or else a `.json` file as in tars, or else rows of a `metadata.jsonl` or `metadata.csv`
            in its folder or above. `NAME.de.txt` holds captions in German.
            A `.jsonl`, `.csv` or `.tsv` file whose rows have a path, relative to the file, in one of the fields
            `PATH_FIELDS` of `data/tables.py`, and captions as `captions_from_fields` finds them; rows of the same
            picture are joined. A `.csv` file may be separated by commas, semicolons, tabs or bars; a tab-separated
            `.tsv` file has no quoting, except around a whole field.
            WebDataset tars, which may be compressed: a `.tar`, a folder of them, or a pattern such as
            `set-{000..007}.tar` or `*.tar`.
        log: receives what was skipped, and why.
        captions: `needed` skips pictures without a caption, `optional` yields them with none.
        worker: which part to read, 0 to `workers - 1`. With several processes this is
            `rank * workers_per_rank + worker`.
        workers: number of parts. They are disjoint and together cover the source.

    Raises:
        UserError: the source is missing, of no known kind, or has no picture, tar or row at all, or its address cannot
            be reached.
        ValueError: `worker` is not in 0 to `workers - 1`.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"expected worker from 0 to {workers - 1}, got {worker}")
    if not str(source):
        raise UserError(f"no source was named; expected {EXPECTED}; set data.source or name one")
    path = source_path(source)
    try:
        return _reader_for(path, log, captions == "needed", worker, workers)
    except OSError as error:
        checked = "the address, the connection and your credentials" if is_address(source) else "its permissions"
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check {checked}") from error


def _reader_for(path: SourcePath, log: SkipLog, needed: bool, worker: int, workers: int) -> Iterator[Pair]:
    """Choose the reader by the kind of the source."""
    if is_folder(path):
        folder_log = log if worker == 0 else SkipLog()  # one worker alone reports on the folder as a whole
        files: list[SourcePath] = sorted(path.iterdir(), key=str)
        tars = [file for file in files if is_tar(file) and not file.name.startswith(".")]
        if not tars:
            samples = folder_samples(path, folder_log, log, needed)
            if not samples:
                raise UserError(f"{path} holds neither pictures nor .tar files; expected {EXPECTED}; check the path")
            return read_samples(samples, log, worker, workers)
        for file in files:
            if picture_kind(file.name) != "other":
                folder_log.add(str(file), "beside tars: a folder is read as tars or as pictures")
        return read_tars(tars, log, needed, worker, workers)
    if path.suffix.lower() in TABLE_ENDINGS and path.exists():
        return read_samples(_table_samples(path, log if worker == 0 else SkipLog(), needed), log, worker, workers)
    return read_tars(tars_of_pattern(str(path)), log, needed, worker, workers)


def is_folder(path: SourcePath) -> bool:
    """Whether a source is a folder.

    Raises:
        OSError: that of an address cannot be found out.
    """
    # A web server would have to send what the address names, to see whether it is a list of files.
    is_file = isinstance(path, RemotePath) and (is_tar(path) or path.suffix.lower() in TABLE_ENDINGS)
    return not is_file and path.is_dir()


def tars_of_pattern(pattern: str) -> list[SourcePath]:
    """List the tars that a path or pattern names; those that braces name but are missing stay in, to be logged."""
    names = [pattern] if not is_address(pattern) and os.path.exists(pattern) else _expand_braces(pattern)
    paths = [path for name in names for path in _matches(name)]
    if not any(path.exists() for path in paths):
        raise UserError(f"{pattern} does not exist; expected {EXPECTED}; check the path")
    tars = [path for path in dict.fromkeys(paths) if is_tar(path)]
    if not tars:
        raise UserError(f"{pattern} is none of the kinds that can be read; expected {EXPECTED}; convert it")
    return tars


def _matches(name: str) -> list[SourcePath]:
    """The paths that a name without braces stands for."""
    if is_address(name):
        path = RemotePath(name)
        return [*path.glob()] if path.is_pattern else [path]
    is_pattern = glob.has_magic(name) and not os.path.exists(name)
    return [Path(match) for match in sorted(glob.iglob(name, recursive=True))] if is_pattern else [Path(name)]


def _expand_braces(pattern: str) -> list[str]:
    """Expand `{000..007}` and `{a,b}` as a shell does.

    Raises:
        UserError: they stand for more than `MAX_NAMES` names.
    """
    shown = pattern if len(pattern) <= 100 else pattern[:100] + "…"
    error = UserError(f"{shown} stands for too many names; expected {MAX_NAMES} short ones at most; shorten it")
    if pattern.count("{") > MAX_BRACES:
        raise error
    names = [pattern]
    while any(BRACES.search(name) for name in names):
        expanded: list[str] = []
        for name in names:
            match = BRACES.search(name)
            for part in _alternatives(match[1]) if match else [""]:
                expanded.append(name[: match.start()] + part + name[match.end() :] if match else name)
                if len(expanded) > MAX_NAMES or len(expanded) * len(pattern) > MAX_PATTERN_CHARACTERS:
                    raise error
        names = expanded
    return names


def _alternatives(content: str) -> Iterable[str]:
    """The texts that the content of a pair of braces stands for."""
    bounds = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", content)
    if bounds is None:
        return content.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    step = 1 if first <= last else -1
    return (str(number).zfill(len(bounds[1])) for number in range(first, last + step, step))


def _table_samples(table: SourcePath, log: SkipLog, needed: bool) -> list[PendingSample]:
    pictures, refused = join_rows(table, log, needed)
    samples = [(where, refusal(reason)) for where, reason in refused]
    samples += [
        (f"{one.where} ({name})", _table_sample(table.parent / name, name, one.captions, one.details, needed))
        for name, one in pictures.items()
    ]
    if not samples:
        raise UserError(f"{table} has no rows; expected one per picture with its path and caption; fill it")
    return samples


def _table_sample(
    path: SourcePath, key: str, captions: list[Caption], details: dict[str, Any], needed: bool
) -> Callable[[], Pair]:
    def read() -> Pair:
        if picture_kind(path.name) == "unreadable":
            raise UnusableSample(unreadable_format(path.name))
        return make_pair(key, captions, details, lambda: read_bytes(path), needed)

    return read


def pictures_of_table(table: SourcePath) -> list[str]:
    """Paths of the pictures that a `.jsonl`, `.csv` or `.tsv` file names, as they stand there, each once."""
    names: dict[str, None] = {}
    for _, fields in read_rows(table, captions_needed=False):
        if isinstance(fields, dict):
            with contextlib.suppress(UnusableSample):
                names[path_of_row(fields)[1]] = None
    return list(names)
