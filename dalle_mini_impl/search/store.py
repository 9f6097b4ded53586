"""What an index keeps in its folder: a table of pictures in SQLite, and their vectors in one file.

    index.sqlite   facts about the index; contents (row of the vector, hash); pictures (path, time, size, row or reason)
    vectors.f16    (n, D) half precision, row after row; rows that no content names are free
    lock.sqlite    held while the index is written

Vectors are on the disk before the rows that name them are committed, so whenever a process is killed, the index is
that of its last commit.
"""

import itertools
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file

DATABASE, VECTORS, LOCK = "index.sqlite", "vectors.f16", "lock.sqlite"
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE contents (row INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE);
CREATE TABLE pictures (
    path BLOB PRIMARY KEY, mtime_ns INTEGER, size INTEGER NOT NULL, row INTEGER REFERENCES contents, reason TEXT,
    CHECK ((row IS NULL) != (reason IS NULL))
) WITHOUT ROWID;
CREATE INDEX pictures_by_row ON pictures (row);
"""


@dataclass(frozen=True)
class File:
    """A picture file as a folder lists it."""

    path: bytes
    """Relative to the indexed folder."""
    mtime_ns: int | None
    """None: must be read whatever is known of it."""
    size: int


@dataclass(frozen=True)
class IndexEntry:
    """A picture file as the index knows it."""

    file: File
    hash: bytes = b""
    """Of its content; empty where it cannot be used."""
    reason: str = ""
    """Why it cannot be used."""


class Store:
    """The files of an index.

    Args:
        folder: where they lie.

    Raises:
        UserError: there is no index, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / DATABASE).is_file():
            raise UserError(f"{folder} holds no index; make one with: dalle index DIR --out {folder}")
        with one_line_errors(folder):
            # Any thread may search; SQLite lets one in at a time.
            self.database = sqlite3.connect(folder / DATABASE, check_same_thread=False)
            self.dim = int(self.fact("dim"))

    def fact(self, name: str) -> str:
        """One of the facts the index was made with; empty where it is not known."""
        found = self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return os.fsdecode(found[0]) if found else ""

    def set_fact(self, name: str, value: str) -> None:
        """Change a fact."""
        with self.database:
            self.database.execute("REPLACE INTO facts VALUES (?, ?)", (name, os.fsencode(value)))

    def files(self) -> dict[bytes, tuple[int | None, int]]:
        """Time and size of every picture, by path."""
        rows = self.database.execute("SELECT path, mtime_ns, size FROM pictures")
        return {path: (mtime_ns, size) for path, mtime_ns, size in rows}

    def contents(self) -> dict[bytes, int]:
        """Row of every content's vector, by hash."""
        return dict(self.database.execute("SELECT hash, row FROM contents"))

    def unreadable(self) -> list[tuple[bytes, str]]:
        """Path and reason of every picture that cannot be used, by path."""
        return self.database.execute(
            "SELECT path, reason FROM pictures WHERE reason IS NOT NULL ORDER BY path"
        ).fetchall()

    def pictures(self) -> list[tuple[bytes, int]]:
        """Path and row of every picture that can be used, by path."""
        return self.database.execute("SELECT path, row FROM pictures WHERE row IS NOT NULL ORDER BY path").fetchall()

    def paths(self, row: int) -> list[bytes]:
        """All pictures whose content has the vector of this row."""
        return [
            path for (path,) in self.database.execute("SELECT path FROM pictures WHERE row = ? ORDER BY path", (row,))
        ]

    def vectors(self) -> tuple[Tensor, Tensor | None]:
        """All vectors (n, D) fp16, memory-mapped, and which of them count, (n,) bool; None for all."""
        path = self.folder / VECTORS
        rows = path.stat().st_size // (2 * self.dim) if path.exists() else 0
        if not rows:
            return torch.empty(0, self.dim, dtype=torch.float16), None
        vectors = torch.from_file(str(path), shared=False, size=rows * self.dim, dtype=torch.float16)
        (named,) = self.database.execute("SELECT count(*) FROM contents WHERE row < ?", (rows,)).fetchone()
        if named == rows:
            return vectors.view(rows, self.dim), None
        used = torch.zeros(rows, dtype=torch.bool)
        used[[row for (row,) in self.database.execute("SELECT row FROM contents WHERE row < ?", (rows,))]] = True
        return vectors.view(rows, self.dim), used

    def add(self, entries: Sequence[IndexEntry], vectors: Mapping[bytes, Tensor], rows: Mapping[bytes, int]) -> None:
        """Take pictures in, replacing what was known of their paths.

        Args:
            entries: the pictures.
            vectors: (D,) of each content that is new, by hash.
            rows: where each content's vector stands, or is to stand, by hash.
        """
        if vectors:
            with (self.folder / VECTORS).open("r+b" if (self.folder / VECTORS).exists() else "w+b") as file:
                for name, vector in vectors.items():
                    file.seek(2 * self.dim * rows[name])
                    file.write(vector.half().numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
        pictures = [
            (entry.file.path, entry.file.mtime_ns, entry.file.size, rows.get(entry.hash), entry.reason or None)
            for entry in entries
        ]
        with self.database:
            self.database.executemany("INSERT INTO contents VALUES (?, ?)", [(rows[name], name) for name in vectors])
            self.database.executemany("REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", pictures)

    def remove(self, paths: Sequence[bytes]) -> None:
        """Forget pictures, and contents that no picture has any more; their rows become free."""
        with self.database:
            self.database.executemany("DELETE FROM pictures WHERE path = ?", [(path,) for path in paths])
            self.database.execute(
                "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.row = contents.row)"
            )


def create(folder: Path, facts: Mapping[str, str]) -> None:
    """Make an empty index, in place of one that is there.

    Args:
        folder: made if missing.
        facts: about the index; `dim` is the width D of its vectors.

    Raises:
        UserError: the folder cannot be written to, or another process writes the index.
    """
    with one_line_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            # The table goes first: without it the rest means nothing. A journal left by a killed process would be
            # taken for the new table's.
            for name in (DATABASE, f"{DATABASE}-journal", VECTORS):
                (folder / name).unlink(missing_ok=True)
            with replace_file(folder / DATABASE) as temporary, closing(sqlite3.connect(temporary)) as database:
                database.executescript(SCHEMA)
                database.executemany("INSERT INTO facts VALUES (?, ?)", [(k, os.fsencode(v)) for k, v in facts.items()])
                database.commit()


def free_rows(rows: Mapping[bytes, int]) -> Iterator[int]:
    """Rows that no content has, in order, without end."""
    used = set(rows.values())
    return (row for row in itertools.count() if row not in used)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep others from writing an index; however the process ends, the lock ends with it.

    Raises:
        UserError: another process has the lock.
    """
    with closing(sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise UserError(f"{folder} is being written by another process; wait until that is done") from error
        yield


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn what SQLite and the disk complain about into one line."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"the index in {folder} cannot be read or written ({error}); check its permissions and the space on its "
            f"disk, or make it anew with --rebuild"
        ) from error
