"""What is known of pictures besides their pixels or ids: on disk, read one at a time, shared by all processes.

    pairs.jsonl      one line per picture: key, split, captions, details …
    pairs.npy        one row of numbers per picture (`ROW`): where its line ends, and what whole sets are searched by
    languages.json   the language codes of all captions

The first two are memory-mapped, so that a million pictures take no memory of the process and open at once. Folders of
version 0.1 have the first file only; their rows of numbers are made anew whenever they are opened.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex, overload

import numpy as np

from dalle_mini_impl.data.checksums import open_array
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.util.errors import UserError

ENTRIES_FILE = "pairs.jsonl"
INDEX_FILE = "pairs.npy"
LANGUAGES_FILE = "languages.json"
ENTRY_FILES = (ENTRIES_FILE, INDEX_FILE, LANGUAGES_FILE)
"""All files of the entries of one folder; old versions wrote the first only."""
ROW = np.dtype([("end", "<u8"), ("kind", "<u8"), ("captions", "<u4"), ("split", "u1"), ("may_flip", "u1")])
"""End of the picture's line in bytes, hash of its kind, number of its captions, number of its split, 1 or 0."""
PACKED_ROW = struct.Struct("<QQIBB")
"""The same for Python's numbers."""
SPLITS = ("", "train", "validation")
"""Splits by number; any other has the next one."""


@dataclass(frozen=True)
class PictureEntry:
    """What a store or token cache holds about a picture besides its pixels or ids; see `Pair` for the fields."""

    key: str
    split: str
    may_flip: bool
    captions: tuple[Caption, ...]
    details: dict[str, Any]


class PictureEntries(Sequence[PictureEntry]):
    """The entries of some pictures, each read when it is asked for; make them with `open` or `of`.

    Args:
        text: lines of JSON.
        index: (n,) of `ROW`, for each line.
        languages: sorted codes of the languages of all captions; captions without one are left out.
        rows: (m,) the lines that belong to it; None for all.
        origin: where the lines come from, for messages.
    """

    def __init__(
        self,
        text: mmap.mmap | bytes,
        index: np.ndarray,
        languages: Sequence[str],
        rows: np.ndarray | None = None,
        origin: str = "memory",
    ) -> None:
        self._text, self._index, self._rows, self._origin = text, index, rows, origin
        self.languages = tuple(languages)

    @classmethod
    def open(cls, folder: Path) -> "PictureEntries":
        """Open the entries of a folder.

        Raises:
            OSError, ValueError, LookupError, TypeError or AttributeError: a file is missing or damaged.
        """
        with (folder / ENTRIES_FILE).open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if (folder / INDEX_FILE).is_file():
                index = open_array(folder / INDEX_FILE)
                languages = json.loads((folder / LANGUAGES_FILE).read_text(encoding="utf-8"))
            else:
                index, languages = _index_of((entry_from_json(json.loads(line)), len(line)) for line in file)
        if index.dtype != ROW or index.ndim != 1 or not len(index) or index["end"][-1] != len(text):
            raise ValueError(f"{INDEX_FILE} holds {index.dtype} {index.shape} of other lines than {ENTRIES_FILE}")
        if not isinstance(languages, list) or not all(isinstance(code, str) for code in languages):
            raise TypeError(f"{LANGUAGES_FILE} holds {languages}")
        return cls(text, index, languages, origin=str(folder / ENTRIES_FILE))

    @classmethod
    def of(cls, entries: Iterable[PictureEntry]) -> "PictureEntries":
        """The entries of a list, in memory."""
        entries = list(entries)
        lines = [entry_line(entry) for entry in entries]
        index, languages = _index_of(zip(entries, map(len, lines), strict=True))
        return cls(b"".join(lines), index, languages)

    def __len__(self) -> int:
        return len(self._index if self._rows is None else self._rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> PictureEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[PictureEntry]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> PictureEntry | list[PictureEntry]:
        if isinstance(index, slice):
            return [self._entry(number) for number in range(*index.indices(len(self)))]
        return self._entry(range(len(self))[index])

    def __iter__(self) -> Iterator[PictureEntry]:
        return map(self._entry, range(len(self)))

    def of_rows(self, rows: np.ndarray) -> "PictureEntries":
        """The entries of some lines (m,) of the same file, whichever belong to this object."""
        return PictureEntries(self._text, self._index, self.languages, rows, self._origin)

    def find(self, split: str, skip_kinds: Sequence[str] = ()) -> np.ndarray:
        """The lines (m,) of the whole file that are of a split, and not of some kinds (detail `kind`)."""
        is_skipped = np.isin(self._index["kind"], np.array([_hash(kind) for kind in skip_kinds], np.uint64))
        return np.flatnonzero((self._index["split"] == _split_number(split)) & ~is_skipped)

    def may_flip(self, indices: np.ndarray) -> np.ndarray:
        """(m,) bool: whether some pictures may be mirrored."""
        return self._numbers("may_flip", indices) != 0

    def caption_counts(self) -> np.ndarray:
        """(n,) int64 captions of each picture."""
        return self._numbers("captions", slice(None)).astype(np.int64)

    def has_caption(self, text: str) -> bool:
        """Whether a picture has a caption of just this text."""
        part = json.dumps({"text": text, "language": ""}, ensure_ascii=False).encode()[: -len('"}')]
        place = self._text.find(part)
        while place >= 0:
            row = np.searchsorted(self._index["end"], place, side="right")
            if self._rows is None or row in self._rows:
                return True
            place = self._text.find(part, place + 1)
        return False

    def _numbers(self, name: str, indices: np.ndarray | slice) -> np.ndarray:
        return self._index[name][indices if self._rows is None else self._rows[indices]]

    def _entry(self, number: int) -> PictureEntry:
        row = number if self._rows is None else int(self._rows[number])
        start = int(self._index["end"][row - 1]) if row else 0
        try:
            return entry_from_json(json.loads(self._text[start : int(self._index["end"][row])]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self._origin} is damaged at line {row + 1} ({error}); make its folder anew") from error


def write_entries(folder: Path, entries: Iterable[PictureEntry]) -> None:
    """Write the entries of a folder, in memory that does not grow with their number."""

    def written() -> Iterator[tuple[PictureEntry, int]]:
        with (folder / ENTRIES_FILE).open("wb") as lines:
            for entry in entries:
                yield entry, lines.write(entry_line(entry))

    languages: set[str] = set()
    with (folder / INDEX_FILE).open("wb") as file:
        # The number of entries is unknown at first. The format leaves room in the header to write it in the end.
        _write_index_header(file, 0)
        size = sum(file.write(row) for row in _index_rows(written(), languages))
        file.seek(0)
        _write_index_header(file, size // ROW.itemsize)
    (folder / LANGUAGES_FILE).write_text(json.dumps(sorted(languages), ensure_ascii=False), encoding="utf-8")


def _write_index_header(file: BinaryIO, count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def entry_from_json(values: dict[str, Any]) -> PictureEntry:
    """Rebuild an entry from one line of `pairs.jsonl`.

    Raises:
        TypeError: a field has the wrong type.
        KeyError: a field is missing.
    """
    captions = tuple(Caption(**caption) for caption in values["captions"])
    entry = PictureEntry(values["key"], values["split"], values["may_flip"], captions, values["details"])
    texts = [entry.key, entry.split, *(text for caption in captions for text in (caption.text, caption.language))]
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.details, dict):
        raise TypeError(f"{ENTRIES_FILE} describes a picture as {values}")
    return entry


def concept_indices(entries: Iterable[PictureEntry]) -> np.ndarray:
    """An index (n,) int64 for each picture, equal for pictures of one concept: detail `concept`, else the key."""
    return np.unique([concept_of(entry) for entry in entries], return_inverse=True)[1]


def concept_hashes(concepts: Sequence[str]) -> np.ndarray:
    """A number (m,) int64 for each of some pictures, equal for pictures of one concept, in whatever batch they are.

    Args:
        concepts: of the pictures; see `concept_of`.
    """
    return np.array([_hash(concept) for concept in concepts], np.uint64).view(np.int64)


def concept_of(entry: PictureEntry) -> str:
    """What a picture shows: its detail `concept`; its key where it has none."""
    return str(entry.details.get("concept", entry.key))


def entry_line(entry: PictureEntry) -> bytes:
    """The line of `pairs.jsonl` for an entry."""
    values = {**vars(entry), "captions": [vars(caption) for caption in entry.captions]}
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def _index_of(entries: Iterable[tuple[PictureEntry, int]]) -> tuple[np.ndarray, list[str]]:
    """The rows of numbers and the sorted languages of entries, each given with the bytes of its line."""
    languages: set[str] = set()
    rows = bytearray()
    for row in _index_rows(entries, languages):
        rows += row
    return np.frombuffer(rows, ROW), sorted(languages)


def _index_rows(entries: Iterable[tuple[PictureEntry, int]], languages: set[str]) -> Iterator[bytes]:
    """The row of numbers of each entry, given with the bytes of its line; adds the codes of its languages to a set."""
    end = 0
    for entry, size in entries:
        end += size
        kind = _hash(entry.details.get("kind"))
        languages.update(caption.language for caption in entry.captions if caption.language)
        yield PACKED_ROW.pack(end, kind, len(entry.captions), _split_number(entry.split), bool(entry.may_flip))


def _split_number(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _hash(name: object) -> int:
    """A number of 64 bits for a name, 0 for what is no text."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest() if isinstance(name, str) else b""
    return int.from_bytes(digest, "little")
