"""Finds damage in the files of an index, so that a search never answers from damaged ones."""

import math
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.util.files import file_digest, replace_file

DATABASE = "index.sqlite"
DIGEST = f"{DATABASE}.blake2b"
OLD_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE contents (row INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE);
CREATE TABLE pictures (
    path BLOB PRIMARY KEY, mtime_ns INTEGER, size INTEGER NOT NULL, row INTEGER REFERENCES contents, reason TEXT,
    CHECK ((row IS NULL) != (reason IS NULL))
) WITHOUT ROWID;
CREATE INDEX pictures_by_row ON pictures (row);
"""
"""Tables of indexes made before vectors had checksums."""
SCHEMA = OLD_SCHEMA.replace("hash BLOB NOT NULL UNIQUE", "hash BLOB NOT NULL UNIQUE, checksum INTEGER")
"""Tables of an index."""


class StoredVectors(NamedTuple):
    """The vectors of an index."""

    vectors: Tensor
    """(n, D) fp16, memory-mapped."""
    used: Tensor | None
    """(n,) bool, rows that can be found; None for all."""
    damaged: list[int]
    """Rows of contents whose vectors are cut off or changed."""


def schema_of(database: sqlite3.Connection) -> str:
    """`SCHEMA` or `OLD_SCHEMA`, whichever a database has.

    Raises:
        ValueError: it has another one. No view or trigger of a stranger is ever run.
    """
    found = _statements(database)
    for schema in (SCHEMA, OLD_SCHEMA):
        with closing(sqlite3.connect(":memory:")) as empty:
            empty.executescript(schema)
            if found == _statements(empty):
                return schema
    raise ValueError(f"its tables {', '.join(sorted(name for _, name, _ in found)) or '(none)'} are not those of one")


def _statements(database: sqlite3.Connection) -> set[tuple[str, str, str]]:
    return set(database.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master"))


def check_database(folder: Path) -> None:
    """Compare the database with its hash, or have SQLite check it where there is none, as after a kill.

    Raises:
        ValueError: it is damaged.
        sqlite3.Error: it is damaged, or cannot be read.
        OSError: it cannot be read.
    """
    expected = _read_digest(folder)
    if expected is not None:
        # A run that writes the database removes the hash first.
        if file_digest(folder / DATABASE) != expected and _read_digest(folder) == expected:
            raise ValueError(f"the content of {DATABASE} is not what was written")
        return
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise ValueError(" ".join(result.split()))


def write_digest(folder: Path) -> None:
    """Write the hash of the database beside it."""
    with replace_file(folder / DIGEST) as temporary:
        temporary.write_text(file_digest(folder / DATABASE), encoding="utf-8")


def remove_digest(folder: Path) -> None:
    """Remove the hash, before the database is written."""
    (folder / DIGEST).unlink(missing_ok=True)


def _read_digest(folder: Path) -> str | None:
    try:
        return (folder / DIGEST).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def vector_checksum(data: bytes | memoryview) -> int:
    """Checksum (CRC-32) of a vector's bytes."""
    return zlib.crc32(data)


def read_vectors(database: sqlite3.Connection, path: Path, dim: int, *, with_checksums: bool) -> StoredVectors:
    """Map the vectors of an index into memory, and compare each with its checksum.

    Args:
        database: of the index.
        path: of the file of vectors; it may be missing.
        dim: D.
        with_checksums: whether the database has them; else zeros and values that are not numbers count as damage.
    """
    stride = 2 * dim
    count = path.stat().st_size // stride if path.exists() else 0
    vectors = torch.empty(0, dim, dtype=torch.float16)
    if count:
        vectors = torch.from_file(str(path), shared=False, size=count * dim, dtype=torch.float16).view(count, dim)
    data = vectors.numpy().data.cast("B") if count else memoryview(b"")
    column = "checksum" if with_checksums else "0"
    recorded = database.execute(f"SELECT row, {column} FROM contents WHERE {column} IS NOT NULL").fetchall()
    damaged = []
    for row, checksum in recorded:
        if not 0 <= row < count:
            damaged.append(row)
        elif with_checksums:
            if zlib.crc32(data[row * stride : row * stride + stride]) != checksum:
                damaged.append(row)
        elif not 0 < float(vectors[row].float().norm()) < math.inf:
            damaged.append(row)
    if len(recorded) == count:
        return StoredVectors(vectors, None, damaged)
    used = torch.zeros(count, dtype=torch.bool)
    used[[row for row, _ in recorded if 0 <= row < count]] = True
    return StoredVectors(vectors, used, damaged)
