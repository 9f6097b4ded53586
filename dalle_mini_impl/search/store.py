"""The files of an index: pictures in an SQLite database, and their vectors in one file.

    index.sqlite           facts (metadata of the index); contents (row of the vector, hash of the file, checksum of the
                           vector, NULL if the vector is lost); pictures (path, time, size, row, or the reason why it
                           cannot be used)
    index.sqlite.blake2b   hash of the database; absent while it is written
    vectors-HEX.f16        (n, D) half precision, row after row; rows that no content refers to are free

Vectors are written to disk before the database refers to them, so a process may be killed at any moment: the index is
then that of its last commit.
"""

import itertools
import os
import re
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dalle_mini_impl.search.integrity import (
    DATABASE,
    OLD_SCHEMA,
    SCHEMA,
    StoredVectors,
    check_database,
    read_vectors,
    remove_digest,
    schema_of,
    vector_checksum,
    write_digest,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import only_writer, replace_file
from dalle_mini_impl.util.text import printable

DEFAULT_FOLDER = ".dalle-index"
"""Name of the index's folder in the folder of its pictures, unless another one is given."""
OLD_VECTORS = "vectors.f16"
"""File of the vectors of indexes that do not name it."""
VECTORS = re.compile(r"vectors(-[0-9a-f]{8})?\.f16")
"""Names of files with vectors."""
IN_TAR = b"\0"
"""What divides the path of a tar, which cannot hold it, from the name of a member."""
MAX_DIM = 2**16
"""Largest width of vectors."""


@dataclass(frozen=True)
class PictureFile:
    """A picture file, or a tar, as listed in a folder, or a picture in a tar."""

    path: bytes
    """Relative to the indexed folder; of a picture in a tar that of the tar, `IN_TAR` and the name of the member."""
    mtime_ns: int | None
    """Modification time, of a member that of the tar; None if the file must be read again at the next update."""
    size: int


@dataclass(frozen=True)
class IndexEntry:
    """A picture file as recorded in the index."""

    file: PictureFile
    hash: bytes = b""
    """Of its content; empty if it cannot be used."""
    reason: str = ""
    """Why it cannot be used."""


class DamagedIndexError(UserError):
    """The index cannot be read because of its content."""


class IndexFiles:
    """Access to the files of an index.

    Args:
        folder: of the index.
        database: in the folder; another one than `index.sqlite` while the index is made again.

    Raises:
        UserError: the folder holds no index, or it cannot be read.
    """

    def __init__(self, folder: Path, database: Path | None = None) -> None:
        self.folder = folder
        path = database or folder / DATABASE
        if not path.is_file():
            raise UserError(
                f"expected an index in {folder}, or in {folder / DEFAULT_FOLDER}, got none; "
                f"make one with: dalle index DIR, or dalle index DIR --out {folder}"
            )
        with one_line_errors(folder):
            if database is None:
                check_database(folder)
            # Searches may come from any thread; SQLite serialises them.
            self.database = sqlite3.connect(path, check_same_thread=False)
            self.database.execute("PRAGMA trusted_schema = OFF")
            self.is_old = schema_of(self.database) == OLD_SCHEMA
            self.dim = int(self.metadata("dim"))
            vectors = self.metadata("vectors") or OLD_VECTORS
            if not 0 < self.dim <= MAX_DIM or not VECTORS.fullmatch(vectors):
                raise ValueError(f"vectors of width {self.dim} in {vectors!r}")
            self.vectors_path = folder / vectors

    def metadata(self, name: str) -> str:
        """A value of the index's metadata; empty if it is not set.

        They are `dim`, `identity`, `scorer`, `vectors`, `root`, `absolute_root`, `mounts`, and `tar HEX` of each tar.
        """
        row = self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return os.fsdecode(row[0]) if row else ""

    def set_metadata(self, values: Mapping[str, str]) -> None:
        """Set values of the index's metadata."""
        with self.database:
            rows = [(name, os.fsencode(value)) for name, value in values.items()]
            self.database.executemany("REPLACE INTO facts VALUES (?, ?)", rows)

    def files(self) -> dict[bytes, tuple[int | None, int, int | None]]:
        """Path -> modification time, size, and row of the vector (None if it cannot be used), of every picture."""
        rows = self.database.execute("SELECT path, mtime_ns, size, row FROM pictures")
        return {path: (mtime_ns, size, row) for path, mtime_ns, size, row in rows}

    def contents(self, *, lost: bool = False) -> dict[bytes, int]:
        """Hash -> row of the vector, of every content whose vector is there, or of those whose vector is lost."""
        condition = "checksum IS NULL" if lost else "checksum IS NOT NULL"
        return dict(self.database.execute(f"SELECT hash, row FROM contents WHERE {condition}"))

    def unreadable(self) -> list[tuple[bytes, str]]:
        """Path and reason of every picture that cannot be used, ordered by path."""
        return self.database.execute(
            "SELECT path, reason FROM pictures WHERE reason IS NOT NULL ORDER BY path"
        ).fetchall()

    def pictures(self) -> list[tuple[bytes, int]]:
        """Path and row of every picture that can be found, ordered by path."""
        lost = "" if self.is_old else "AND row NOT IN (SELECT row FROM contents WHERE checksum IS NULL)"
        return self.database.execute(
            f"SELECT path, row FROM pictures WHERE row IS NOT NULL {lost} ORDER BY path"
        ).fetchall()

    def paths(self, row: int) -> list[bytes]:
        """Paths of all pictures whose content has the vector in this row, ordered."""
        return [
            path for (path,) in self.database.execute("SELECT path FROM pictures WHERE row = ? ORDER BY path", (row,))
        ]

    def some_paths(self, count: int) -> list[bytes]:
        """Paths of the first pictures that can be used."""
        rows = self.database.execute("SELECT path FROM pictures WHERE row IS NOT NULL LIMIT ?", (count,))
        return [path for (path,) in rows]

    def vectors(self) -> StoredVectors:
        """All vectors, memory-mapped, and which of them are used or damaged."""
        return read_vectors(self.database, self.vectors_path, self.dim, with_checksums=not self.is_old)

    def tar_states(self) -> dict[bytes, tuple[int, int]]:
        """Path -> modification time and size of every tar when it was read to its end."""
        rows = self.database.execute("SELECT substr(name, 5), value FROM facts WHERE name GLOB 'tar *'")
        states = {bytes.fromhex(name): os.fsdecode(value).split() for name, value in rows}
        return {path: (int(state[0]), int(state[1])) for path, state in states.items()}

    def set_tar_state(self, path: bytes, state: tuple[int, int]) -> None:
        """Record the modification time and size of a tar that was read to its end."""
        self.set_metadata({f"tar {path.hex()}": f"{state[0]} {state[1]}"})

    def forget_tars(self, paths: Iterable[bytes]) -> None:
        """Delete the records of tars that are gone."""
        with self.database:
            self.database.executemany("DELETE FROM facts WHERE name = ?", [(f"tar {path.hex()}",) for path in paths])

    def mark_lost(self, damaged: Sequence[int]) -> None:
        """Record that the vectors in some rows are lost, so that their pictures are read again.

        An index without checksums gets them.
        """
        if self.is_old:
            intact = self.vectors().vectors
            with self.database:
                self.database.execute("ALTER TABLE contents ADD COLUMN checksum INTEGER")
                rows = [row for (row,) in self.database.execute("SELECT row FROM contents") if 0 <= row < len(intact)]
                values = [(vector_checksum(intact[row].numpy().tobytes()), row) for row in rows]
                self.database.executemany("UPDATE contents SET checksum = ? WHERE row = ?", values)
            self.is_old = False
        with self.database:
            rows_of_damaged = [(row,) for row in damaged]
            self.database.executemany("UPDATE contents SET checksum = NULL WHERE row = ?", rows_of_damaged)
            self.database.executemany("UPDATE pictures SET mtime_ns = NULL WHERE row = ?", rows_of_damaged)

    def add(self, entries: Sequence[IndexEntry], vectors: Mapping[bytes, Tensor], rows: Mapping[bytes, int]) -> None:
        """Record pictures, replacing earlier records of their paths.

        Args:
            entries: the pictures.
            vectors: hash -> vector (D,), of each new content, and of each whose vector was lost.
            rows: hash -> row of the vector, of each content, the new ones included.
        """
        contents = []
        if vectors:
            with self.vectors_path.open("r+b" if self.vectors_path.exists() else "w+b") as file:
                for name, vector in vectors.items():
                    data = vector.half().numpy().tobytes()
                    file.seek(2 * self.dim * rows[name])
                    file.write(data)
                    contents.append((rows[name], name, vector_checksum(data)))
                file.flush()
                os.fsync(file.fileno())
        pictures = [
            (entry.file.path, entry.file.mtime_ns, entry.file.size, rows.get(entry.hash), entry.reason or None)
            for entry in entries
        ]
        with self.database:
            self.database.executemany("REPLACE INTO contents VALUES (?, ?, ?)", contents)
            self.database.executemany("REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", pictures)

    def remove(self, paths: Sequence[bytes]) -> None:
        """Delete pictures, and contents that no picture has any more; their rows become free."""
        with self.database:
            self.database.executemany("DELETE FROM pictures WHERE path = ?", [(path,) for path in paths])
            self.database.execute(
                "DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.row = contents.row)"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write the database in the block; its hash, by which damage is found, is taken afterwards."""
        remove_digest(self.folder)
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the reason for which the block ended is the one to be told
                write_digest(self.folder)
            raise
        write_digest(self.folder)


def create_files(folder: Path, metadata: Mapping[str, str]) -> None:
    """Make an empty index where there is none.

    Args:
        folder: made if missing.
        metadata: of the index; `dim` is the width D of its vectors.

    Raises:
        UserError: the folder cannot be written to.
    """
    with one_line_errors(folder), replace_file(folder / DATABASE) as temporary:
        remove_digest(folder)
        # A journal left by a killed process would be applied to the new database.
        (folder / f"{DATABASE}-journal").unlink(missing_ok=True)
        _create_database(temporary, metadata)
    remove_unused_vectors(folder)


@contextmanager
def replacing_files(folder: Path, metadata: Mapping[str, str]) -> Iterator[IndexFiles]:
    """Yield an empty index to fill, which replaces that of the folder if the block ends without an error.

    Raises:
        UserError: the folder cannot be written to.
    """
    with one_line_errors(folder):
        try:
            with replace_file(folder / DATABASE) as temporary:
                _create_database(temporary, metadata)
                files = IndexFiles(folder, temporary)
                with closing(files.database):
                    yield files
                remove_digest(folder)
                (folder / f"{DATABASE}-journal").unlink(missing_ok=True)
            write_digest(folder)
        finally:
            remove_unused_vectors(folder)


def _create_database(path: Path, metadata: Mapping[str, str]) -> None:
    values = {**metadata, "vectors": f"vectors-{secrets.token_hex(4)}.f16"}
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        rows = [(name, os.fsencode(value)) for name, value in values.items()]
        database.executemany("INSERT INTO facts VALUES (?, ?)", rows)
        database.commit()


def remove_unused_vectors(folder: Path) -> None:
    """Remove files of vectors that the index does not name: those of an earlier index, or of a run that was killed."""
    with suppress(UserError):
        files = IndexFiles(folder)
        files.database.close()
        for path in folder.glob("vectors*.f16"):
            if VECTORS.fullmatch(path.name) and path != files.vectors_path:
                path.unlink()


def check_is_ours(folder: Path) -> None:
    """Check that what an index would replace in a folder is absent, or an index, be it damaged.

    Raises:
        UserError: it is something else.
    """
    path = folder / DATABASE
    if not path.exists() or path.stat().st_size == 0 or folder.name == DEFAULT_FOLDER:
        return
    with suppress(sqlite3.Error, ValueError), closing(sqlite3.connect(path)) as database:
        schema_of(database)
        return
    if not any(VECTORS.fullmatch(name) for name in os.listdir(folder)):
        raise UserError(
            f"expected {folder} to be absent or to hold an index, got a file {DATABASE} of another program; "
            f"name another folder"
        )


def free_rows(rows: Mapping[bytes, int]) -> Iterator[int]:
    """Row numbers that no content uses, ascending, without end."""
    used = set(rows.values())
    return (row for row in itertools.count() if row not in used)


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Lock an index against other writers.

    Raises:
        UserError: another process has the lock, or the folder cannot be written.
    """
    with only_writer(folder / DATABASE):
        yield


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite, of the disk and of damaged values into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        if "full" in str(error):
            raise UserError(f"cannot write the index in {folder}: the disk is full; make space") from error
        raise UserError(
            f"the index in {folder} cannot be read or written ({error}); check its permissions "
            f"and the space on its disk"
        ) from error
    except OSError as error:
        raise UserError(
            f"the index in {folder} cannot be read or written ({error.strerror or error}); check its permissions and "
            f"the space on its disk"
        ) from error
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise DamagedIndexError(
            f"the index in {folder} is damaged ({printable(str(error))}); make it again with: dalle index DIR --rebuild"
        ) from error
