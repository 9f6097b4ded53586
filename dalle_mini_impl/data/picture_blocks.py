"""Encoded pictures of the blocks of a source, each in a file of its own until all are joined to a store."""

import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dalle_mini_impl.data.block_folder import BlockFolder, as_bytes, entries_of, entry_lines
from dalle_mini_impl.data.blocks import SampleBlock
from dalle_mini_impl.data.encoded_pictures import PICTURE_INDEX, PICTURES_FILE, ROW
from dalle_mini_impl.data.entries import PictureEntry, write_entries
from dalle_mini_impl.data.fit import FitCounts
from dalle_mini_impl.data.pair import SkipLog

PICTURES, INDEX, ENTRIES, MAY_MOVE, COUNTS = "pictures", "index", "entries", "may_move", "counts"
"""Names in a block's file: the pictures' bytes, their index, their entries, whether they may be moved to another split,
and what `BuildCounts` says of them."""


@dataclass
class BuildCounts:
    """What is counted while a store is built."""

    counts: Counter[str] = field(default_factory=Counter)
    """`pictures`, `enlarged`, `without captions`, `movable`, `source NUMBER`, and pictures of each `SPLIT` and of each
    `SPLIT with captions`."""
    fitted: FitCounts = field(default_factory=FitCounts)

    def add(self, entry: PictureEntry, source: int, *, may_move: bool) -> None:
        """Count a picture."""
        self.counts.update(("pictures", f"source {source}", entry.split))
        self.counts["movable"] += may_move
        self.counts[f"{entry.split} with captions" if entry.captions else "without captions"] += 1

    def merge(self, other: "BuildCounts") -> None:
        """Add the counts of other pictures."""
        self.counts.update(other.counts)
        self.fitted.merge(other.fitted)

    def lacks_a_split(self) -> bool:
        """Whether one of both splits has none of those pictures that count: with captions, if any has one."""
        ending = " with captions" if self.counts["without captions"] < self.counts["pictures"] else ""
        return not all(self.counts[f"{split}{ending}"] for split in ("train", "validation"))

    def as_bytes(self) -> np.ndarray:
        """As an array of a block."""
        fitted = {**vars(self.fitted), "changes": dict(self.fitted.changes)}
        return as_bytes(json.dumps({"counts": dict(self.counts), "fitted": fitted}).encode())

    @classmethod
    def from_bytes(cls, content: np.ndarray) -> "BuildCounts":
        """What `as_bytes` gave."""
        values = json.loads(content.tobytes())
        fitted = values["fitted"]
        return cls(Counter(values["counts"]), FitCounts(**{**fitted, "changes": Counter(fitted["changes"])}))


@dataclass
class PictureBlock:
    """The pictures of a block, as they are added."""

    contents: list[bytes] = field(default_factory=list)
    entries: list[PictureEntry] = field(default_factory=list)
    may_move: list[bool] = field(default_factory=list)
    counts: BuildCounts = field(default_factory=BuildCounts)

    def add(self, content: bytes, entry: PictureEntry, source: int, *, may_move: bool) -> None:
        """Add a picture."""
        self.contents.append(content)
        self.entries.append(entry)
        self.may_move.append(may_move)
        self.counts.add(entry, source, may_move=may_move)


class PictureBlocks(BlockFolder):
    """A folder of blocks of pictures."""

    def write(self, block: SampleBlock, is_last: bool, pictures: PictureBlock, log: SkipLog) -> None:
        """Write a block.

        Args:
            block: which.
            is_last: whether it is the last one of its part.
            pictures: all of the block.
            log: what was skipped, and why.

        Raises:
            UserError: it cannot be written.
        """
        ends = itertools.accumulate(map(len, pictures.contents))
        rows = [(end, zlib.crc32(one)) for end, one in zip(ends, pictures.contents, strict=True)]
        content = {
            PICTURES: as_bytes(b"".join(pictures.contents)),
            INDEX: np.array(rows, ROW),
            ENTRIES: entry_lines(pictures.entries),
            MAY_MOVE: np.array(pictures.may_move, bool),
            COUNTS: pictures.counts.as_bytes(),
        }
        self.write_block(block, is_last, content, log)

    def counted(self) -> BuildCounts:
        """The counts of all blocks.

        Raises:
            UserError: a block is damaged.
        """
        total = BuildCounts()
        for content in self.contents([COUNTS]):
            total.merge(BuildCounts.from_bytes(content[COUNTS]))
        return total

    def entries(self) -> Iterator[PictureEntry]:
        """The entries of all pictures.

        Raises:
            UserError: a block is damaged.
        """
        for content in self.contents([ENTRIES]):
            yield from entries_of(content[ENTRIES])

    def movable(self) -> list[int]:
        """The pictures that may be moved to another split, by their number.

        Raises:
            UserError: a block is damaged.
        """
        return np.flatnonzero(np.concatenate([content[MAY_MOVE] for content in self.contents([MAY_MOVE])])).tolist()

    def join(self, folder: Path, count: int, entries: Iterator[PictureEntry] | list[PictureEntry]) -> None:
        """Write pictures and entries of a store, in memory that does not grow with their number.

        Args:
            folder: of the store.
            count: of all pictures.
            entries: of all pictures.

        Raises:
            UserError: a block is damaged.
        """
        end = 0
        with (folder / PICTURES_FILE).open("wb") as pictures, (folder / PICTURE_INDEX).open("wb") as index:
            header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(index, header)
            for content in self.contents([PICTURES, INDEX]):
                rows = content[INDEX].copy()
                rows["end"] += np.uint64(end)
                index.write(rows.tobytes())
                end += pictures.write(content[PICTURES].tobytes())
        write_entries(folder, entries)
