"""Reads captioned pictures from a folder, a JSONL or CSV file, or WebDataset tars, here or at an address.

A sample that cannot be used never stops a reader: it is skipped and recorded in a `SkipLog` with the reason.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from dalle_mini_impl.data.folder_reader import folder_samples
from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.data.parquet_reader import holds_pictures, is_parquet
from dalle_mini_impl.data.parts import PendingSample, SourcePart, read_parts, refusal
from dalle_mini_impl.data.remote import SourcePath, is_address, source_path
from dalle_mini_impl.data.sample import UnusableSample, make_pair, read_bytes
from dalle_mini_impl.data.shards import (
    EXPECTED,
    is_folder,
    list_folder,
    shard_parts,
    shards_of_folder,
    shards_of_pattern,
)
from dalle_mini_impl.data.tables import TABLE_ENDINGS, join_rows, path_of_row, read_rows
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import picture_kind, unreadable_format


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
    parts = source_parts(source, log, log if worker == 0 else SkipLog(), captions)
    return read_parts(parts, log, worker, workers)


def source_parts(
    source: str | Path, log: SkipLog, source_log: SkipLog, captions: Literal["needed", "optional"] = "needed"
) -> list[SourcePart]:
    """The parts of a source, in order: one for each tar or Parquet file, or a single one.

    Args:
        source: as for `read_pairs`.
        log: receives, while samples are read, what was left out of them.
        source_log: receives what was skipped of the source as a whole.
        captions: as for `read_pairs`.

    Raises:
        UserError: as `read_pairs`.
    """
    if not str(source):
        raise UserError(f"no source was named; expected {EXPECTED}; set data.source or name one")
    path = source_path(source)
    try:
        return _parts_of(path, log, source_log, captions == "needed")
    except OSError as error:
        checked = "the address, the connection and your credentials" if is_address(source) else "its permissions"
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check {checked}") from error


def _parts_of(path: SourcePath, log: SkipLog, source_log: SkipLog, needed: bool) -> list[SourcePart]:
    """Choose the reader by the kind of the source."""
    if is_folder(path):
        folder_log = SkipLog()
        files = list_folder(path, folder_log)
        if shards := shards_of_folder(path, files):
            kind = "Parquet files" if is_parquet(shards[0]) else "tars"
            for file in files:
                if file.parent == shards[0].parent and picture_kind(file.name) != "other":
                    source_log.add(str(file), f"beside {kind}: a folder is read as {kind} or as pictures")
            return shard_parts(shards, log, needed)
        source_log.merge(folder_log)
        samples = folder_samples(path, files, source_log, log, needed)
        if samples is None:
            raise UserError(f"{path} holds neither pictures nor .tar files; expected {EXPECTED}; check the path")
        return [lambda _: samples]
    is_table = path.suffix.lower() in TABLE_ENDINGS and path.exists()
    if is_table and not (is_parquet(path) and holds_pictures(path)):
        rows = _table_samples(path, source_log, needed)
        return [lambda _: rows]
    return shard_parts(shards_of_pattern(str(path)), log, needed)


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
    """Paths of the pictures that a table names, as they stand there, each once; none if it holds the pictures."""
    if is_parquet(table) and holds_pictures(table):
        return []
    names: dict[str, None] = {}
    for _, fields in read_rows(table, captions_needed=False):
        if isinstance(fields, dict):
            with contextlib.suppress(UnusableSample):
                names[path_of_row(fields)[1]] = None
    return list(names)
