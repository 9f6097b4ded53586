"""The files of an index: pictures in an SQLite database, and their vectors in one file.

    index.sqlite   facts (metadata of the index); contents (row of the vector, hash of the file); pictures (path, time,
                   size, row, or the reason why it cannot be used)
    vectors.f16    (n, D) half precision, row after row; rows that no content refers to are free
    lock.sqlite    locked while the index is written

Vectors are written to disk before the database refers to them, so a process may be killed at any moment: the index is
then that of its last commit.
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

DATABASE = "index.sqlite"
VECTORS = "vectors.f16"
LOCK = "lock.sqlite"
DEFAULT_FOLDER = ".dalle-index"
"""Name of the index's folder in the folder of its pictures, unless another one is given."""
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
class PictureFile:
    """A picture file as listed in a folder."""

    path: bytes
    """Relative to the indexed folder."""
    mtime_ns: int | None
    """Modification time; None if the file must be read again at the next update."""
    size: int


@dataclass(frozen=True)
class IndexEntry:
    """A picture file as recorded in the index."""

    file: PictureFile
    hash: bytes = b""
    """Of its content; empty if it cannot be used."""
    reason: str = ""
    """Why it cannot be used."""


class IndexFiles:
    """Access to the files of an index.

    Args:
        folder: of the index.

    Raises:
        UserError: the folder holds no index, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / DATABASE).is_file():
            raise UserError(
                f"expected an index in {folder}, or in {folder / DEFAULT_FOLDER}, got none; "
                f"make one with: dalle index DIR, or dalle index DIR --out {folder}"
            )
        with one_line_errors(folder):
            # Searches may come from any thread; SQLite serialises them.
            self.database = sqlite3.connect(folder / DATABASE, check_same_thread=False)
            self.dim = int(self.metadata("dim"))

    def metadata(self, name: str) -> str:
        """A value of the index's metadata: `dim`, `identity`, `scorer` or `root`; empty if it is not set."""
        row = self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return os.fsdecode(row[0]) if row else ""

    def set_metadata(self, name: str, value: str) -> None:
        """Set a value of the index's metadata."""
        with self.database:
            self.database.execute("REPLACE INTO facts VALUES (?, ?)", (name, os.fsencode(value)))

    def files(self) -> dict[bytes, tuple[int | None, int]]:
        """Path -> modification time and size, of every picture."""
        rows = self.database.execute("SELECT path, mtime_ns, size FROM pictures")
        return {path: (mtime_ns, size) for path, mtime_ns, size in rows}

    def contents(self) -> dict[bytes, int]:
        """Hash -> row of the vector, of every content."""
        return dict(self.database.execute("SELECT hash, row FROM contents"))

    def unreadable(self) -> list[tuple[bytes, str]]:
        """Path and reason of every picture that cannot be used, ordered by path."""
        return self.database.execute(
            "SELECT path, reason FROM pictures WHERE reason IS NOT NULL ORDER BY path"
        ).fetchall()

    def pictures(self) -> list[tuple[bytes, int]]:
        """Path and row of every picture that can be used, ordered by path."""
        return self.database.execute("SELECT path, row FROM pictures WHERE row IS NOT NULL ORDER BY path").fetchall()

    def paths(self, row: int) -> list[bytes]:
        """Paths of all pictures whose content has the vector in this row, ordered."""
        return [
            path for (path,) in self.database.execute("SELECT path FROM pictures WHERE row = ? ORDER BY path", (row,))
        ]

    def vectors(self) -> tuple[Tensor, Tensor | None]:
        """All vectors (n, D) fp16, memory-mapped, and which rows are in use, (n,) bool; None for all."""
        path = self.folder / VECTORS
        rows = path.stat().st_size // (2 * self.dim) if path.exists() else 0
        if not rows:
            return torch.empty(0, self.dim, dtype=torch.float16), None
        vectors = torch.from_file(str(path), shared=False, size=rows * self.dim, dtype=torch.float16)
        (used_count,) = self.database.execute("SELECT count(*) FROM contents WHERE row < ?", (rows,)).fetchone()
        if used_count == rows:
            return vectors.view(rows, self.dim), None
        used = torch.zeros(rows, dtype=torch.bool)
        used[[row for (row,) in self.database.execute("SELECT row FROM contents WHERE row < ?", (rows,))]] = True
        return vectors.view(rows, self.dim), used

    def add(self, entries: Sequence[IndexEntry], vectors: Mapping[bytes, Tensor], rows: Mapping[bytes, int]) -> None:
        """Record pictures, replacing earlier records of their paths.

        Args:
            entries: the pictures.
            vectors: hash -> vector (D,), of each new content.
            rows: hash -> row of the vector, of each content, the new ones included.
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
        """Delete pictures, and contents that no picture has any more; their rows become free."""
        with self.database:
            self.database.executemany("DELETE FROM pictures WHERE path = ?", [(path,) for path in paths])
            self.database.execute(
                "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.row = contents.row)"
            )


def create_files(folder: Path, metadata: Mapping[str, str]) -> None:
    """Make an empty index, replacing one that exists.

    Args:
        folder: made if missing.
        metadata: of the index; `dim` is the width D of its vectors.

    Raises:
        UserError: the folder cannot be written to, or another process writes the index.
    """
    with one_line_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with write_lock(folder):
            # The database is deleted first: without it the other files are ignored. A journal left by a killed process
            # would be applied to the new database.
            for name in (DATABASE, f"{DATABASE}-journal", VECTORS):
                (folder / name).unlink(missing_ok=True)
            with replace_file(folder / DATABASE) as temporary, closing(sqlite3.connect(temporary)) as database:
                database.executescript(SCHEMA)
                values = [(name, os.fsencode(value)) for name, value in metadata.items()]
                database.executemany("INSERT INTO facts VALUES (?, ?)", values)
                database.commit()


def free_rows(rows: Mapping[bytes, int]) -> Iterator[int]:
    """Row numbers that no content uses, ascending, without end."""
    used = set(rows.values())
    return (row for row in itertools.count() if row not in used)


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Lock an index against other writers. The operating system releases the lock when the process ends.

    Raises:
        UserError: another process has the lock.
    """
    with closing(sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise UserError(
                f"expected to write {folder} alone, got a lock of another process; wait until that is done"
            ) from error
        yield


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and the disk into a `UserError` of one line."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"the index in {folder} cannot be read or written ({error}); check its permissions and the space on its "
            f"disk, or make it again with --rebuild"
        ) from error
