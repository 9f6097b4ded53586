"""The files that a large source consists of: tars, or Parquet files with pictures in them."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dalle_mini_impl.data.folder_reader import METADATA_FILES
from dalle_mini_impl.data.img2dataset import log_failures_of_tar
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.parquet_reader import (
    check_parquet,
    holds_pictures,
    is_parquet,
    parquet_installed,
    parquet_samples,
)
from dalle_mini_impl.data.parts import PendingSample, SourcePart
from dalle_mini_impl.data.remote import RemotePath, SourcePath, is_address
from dalle_mini_impl.data.sample import list_files
from dalle_mini_impl.data.tables import TABLE_ENDINGS
from dalle_mini_impl.data.tar_reader import is_tar, tar_samples
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import picture_kind

EXPECTED = "a folder of pictures with .txt captions, a .jsonl or .csv file, or .tar or .parquet files"
"""The sources that can be read, for error messages."""
BRACES = re.compile(r"\{([^{}]*)\}")
"""Braces of a pattern without others inside."""
MAX_BRACES = 20
"""Most pairs of braces in a pattern."""
MAX_NAMES = 300_000
"""Most names that a pattern may stand for."""
MAX_PATTERN_CHARACTERS = 1 << 25
"""Most characters of all names together that a pattern may stand for."""


def shard_parts(shards: Sequence[SourcePath], log: SkipLog, needed: bool) -> list[SourcePart]:
    """The parts of a source that consists of tars or Parquet files, one for each.

    Args:
        shards: the files.
        log: receives, while samples are read, what was left out of them.
        needed: whether pictures without a caption are skipped.
    """
    return [partial(_shard_samples, shard, log, needed) for shard in shards]


def _shard_samples(shard: SourcePath, log: SkipLog, needed: bool, shard_log: SkipLog) -> Iterator[PendingSample]:
    if is_parquet(shard):
        return parquet_samples(shard, log, shard_log, needed)
    log_failures_of_tar(shard, shard_log)
    return tar_samples(shard, log, shard_log, needed)


def list_folder(folder: SourcePath, log: SkipLog) -> list[SourcePath]:
    """All files below a folder, sorted, without hidden ones; `log` records folders that cannot be listed.

    Raises:
        OSError: a folder at an address cannot be listed.
    """
    if isinstance(folder, RemotePath):
        return [*folder.list_states(recursive=True)]
    return [*list_files(folder, log)]


def shards_of_folder(folder: SourcePath, files: Sequence[SourcePath]) -> list[SourcePath]:
    """The tars directly in a folder, else the Parquet files at any depth, if they hold pictures.

    Args:
        folder: where they are.
        files: all files below it.

    Raises:
        UserError: there are Parquet files and nothing else to read, and the extra is not installed.
        OSError: the folder cannot be listed.
    """
    top = files if isinstance(folder, RemotePath) else sorted(folder.iterdir())
    if tars := [file for file in top if is_tar(file) and file.parent == folder and not file.name.startswith(".")]:
        return tars
    tables = [file for file in files if is_parquet(file) and file.name not in METADATA_FILES]
    if not tables or (not parquet_installed() and any(picture_kind(file.name) != "other" for file in files)):
        return []
    for table in tables:
        try:
            return tables if holds_pictures(table) else []
        except (OSError, UserError):  # reading them all says which are damaged
            if not parquet_installed():
                raise
    return tables


def shards_of_source(path: SourcePath) -> list[SourcePath]:
    """The tars or Parquet files that a source consists of; empty for a folder of pictures.

    Raises:
        UserError: as `shards_of_folder` and `shards_of_pattern`.
        OSError: the source cannot be listed.
    """
    if is_folder(path):
        return shards_of_folder(path, list_folder(path, SkipLog()))
    return shards_of_pattern(str(path))


def is_folder(path: SourcePath) -> bool:
    """Whether a source is a folder.

    Raises:
        OSError: that of an address cannot be found out.
    """
    # A web server would have to send what the address names, to see whether it is a list of files.
    is_file = isinstance(path, RemotePath) and (is_tar(path) or path.suffix.lower() in TABLE_ENDINGS)
    return not is_file and path.is_dir()


def shards_of_pattern(pattern: str) -> list[SourcePath]:
    """The tars and Parquet files that a path or pattern names; those of braces that are missing stay in, to be logged.

    Raises:
        UserError: none of them exists, all are of other kinds, or the extra for Parquet files is not installed.
        OSError: an address cannot be looked at.
    """
    names = [pattern] if not is_address(pattern) and os.path.exists(pattern) else _expand_braces(pattern)
    paths = [path for name in names for path in _matches(name)]
    if not any(path.exists() for path in paths):
        raise UserError(f"{pattern} does not exist; expected {EXPECTED}; check the path")
    shards = [path for path in dict.fromkeys(paths) if is_tar(path) or is_parquet(path)]
    if not shards:
        raise UserError(f"{pattern} is none of the kinds that can be read; expected {EXPECTED}; convert it")
    if any(map(is_parquet, shards)):
        check_parquet()
    return shards


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
