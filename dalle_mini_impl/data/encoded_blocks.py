"""Image ids of the blocks of a source, each in a file of its own until all are joined to a token cache.

The folder has `work.json`, which says what is encoded and how, and `PART-NUMBER.npz` for each block, or
`PART-NUMBER-last.npz` for the last one of its part. A file gets its name when it is whole and on the disk, so the name
says that the block is finished. Any number of processes may write into the folder; what they write is the same however
many there are, and so is the cache.
"""

import itertools
import json
import platform
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.data.blocks import FinishedBlocks, SampleBlock
from dalle_mini_impl.data.entries import PictureEntry, entry_from_json, entry_line, write_entries
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable, dump_json, replace_file, write_json

WORK_FILE = "work.json"
BLOCK_FILE = re.compile(r"(\d{6})-(\d{6})(-last)?\.npz")
"""Names of the files of blocks."""
CONTENTS = (WORK_FILE, "[0-9]*.npz", ".*")
"""What the folder holds; the first marks it."""
ENTRIES, LOG, COUNTS = "entries", "log", "counts"
"""Names in a block's file of the lines of a split's entries, of what was skipped, and of the pictures of each split."""
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class EncodedBlocks:
    """A folder of encoded blocks."""

    folder: Path

    def prepare(self, work: Mapping[str, Any]) -> None:
        """Make the folder, or check that the same work was begun there, if any block is finished.

        Args:
            work: everything that the ids follow from, as JSON values.

        Raises:
            UserError: it holds anything else, or cannot be written.
        """
        check_replaceable(self.folder, CONTENTS)
        path = self.folder / WORK_FILE
        values = json.loads(dump_json(dict(work)))
        if not path.exists() or not self._files():
            write_json(path, values)
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            different = sorted(name for name in {*before, *values} if before.get(name) != values.get(name))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error!r}); remove {self.folder}, so that all is encoded anew"
            ) from error
        if different:
            raise UserError(
                f"expected {self.folder} to be of the same work, got one that was begun with another "
                f"{', '.join(different)}; repeat the command that began it, or remove that folder to begin anew"
            )

    def check_shared(self) -> None:
        """Check that the folder which another machine has prepared is there.

        Raises:
            UserError: it is not.
        """
        if not (self.folder / WORK_FILE).is_file():
            raise UserError(
                f"expected {self.folder} on every machine, got none on {platform.node()}; set out to a folder that all "
                f"machines share"
            )

    def finished(self) -> FinishedBlocks:
        """The blocks that are encoded."""
        blocks, lengths = set(), {}
        for name in sorted(path.name for path in self.folder.iterdir()):
            if match := BLOCK_FILE.fullmatch(name):
                block = SampleBlock(int(match[1]), int(match[2]))
                blocks.add(block)
                if match[3]:
                    lengths[block.part] = block.number + 1
        return FinishedBlocks(blocks, lengths)

    def write(
        self,
        block: SampleBlock,
        is_last: bool,
        entries: Mapping[str, Sequence[PictureEntry]],
        arrays: Mapping[str, Mapping[str, np.ndarray]],
        log: SkipLog,
    ) -> None:
        """Write a block.

        Args:
            block: which.
            is_last: whether it is the last one of its part.
            entries: split -> its pictures.
            arrays: split -> file of a token cache -> (n, …) what it holds of these pictures.
            log: what was skipped, and why.

        Raises:
            UserError: it cannot be written.
        """
        name = f"{block.part:06d}-{block.number:06d}{'-last' * is_last}.npz"
        content = {f"{split}/{name}": array for split, own in arrays.items() for name, array in own.items()}
        content |= {f"{split}/{ENTRIES}": _bytes(b"".join(map(entry_line, entries[split]))) for split in SPLITS}
        content |= {
            LOG: _bytes(dump_json(log.as_json()).encode()),
            COUNTS: np.array([len(entries[split]) for split in SPLITS]),
        }
        with replace_file(self.folder / name) as temporary:
            np.savez(temporary, **content)  # type: ignore[arg-type]

    def count(self, log: SkipLog) -> dict[str, int]:
        """Number of pictures of each split in all blocks.

        Args:
            log: receives what was skipped.

        Raises:
            UserError: a block is damaged.
        """
        totals = np.zeros(len(SPLITS), np.int64)
        for content in _contents(self._files(), [COUNTS, LOG]):
            totals += content[COUNTS]
            log.merge(SkipLog.from_json(json.loads(content[LOG].tobytes())))
        return dict(zip(SPLITS, totals.tolist(), strict=True))

    def join(self, folder: Path, counts: Mapping[str, int], arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Write the folders of the splits of a token cache, in memory that does not grow with the number of pictures.

        Args:
            folder: of the cache.
            counts: what `count` returned.
            arrays: file of the cache -> type of its numbers, and shape of what it holds of each training picture; of
                a validation picture it has one variant.

        Raises:
            UserError: a block is damaged.
        """
        files = self._files()
        for split, count in counts.items():
            (folder / split).mkdir()
            for name, (number_type, shape) in arrays.items():
                own = (count, *(shape if split == "train" else (1, *shape[1:])))
                header = {"descr": np.dtype(number_type).str, "fortran_order": False, "shape": own}
                with (folder / split / name).open("wb") as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for content in _contents(files, [f"{split}/{name}"]):
                        file.write(content[f"{split}/{name}"].tobytes())
            lines = (content[f"{split}/{ENTRIES}"] for content in _contents(files, [f"{split}/{ENTRIES}"]))
            write_entries(folder / split, itertools.chain.from_iterable(map(_entries_of, lines)))

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if BLOCK_FILE.fullmatch(path.name))


def _contents(paths: Sequence[Path], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Some arrays of each block's file, one file after another.

    Raises:
        UserError: a file is damaged; each array has a checksum.
    """
    for path in paths:
        try:
            with np.load(path) as content:
                arrays = {name: content[name] for name in names}
        except (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}); remove it and repeat the command") from error
        yield arrays


def _entries_of(lines: np.ndarray) -> Iterator[PictureEntry]:
    for line in lines.tobytes().splitlines():
        yield entry_from_json(json.loads(line))


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
