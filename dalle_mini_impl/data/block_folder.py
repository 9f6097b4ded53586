"""What is made of the blocks of a source, each in a file of its own until all are joined.

The folder has `work.json`, which says what is made and how, and `PART-NUMBER.npz` for each block, with `-last` for the
last one of its part. A file gets its name when it is whole and on the disk, so the name tells that the block is
finished. `-partial` tells that some samples could not be read for the moment: the block counts as finished in the run
that wrote it, and is read again by one that goes on after an interruption. Any number of processes may write into the
folder.
"""

import json
import platform
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.data.blocks import FinishedBlocks, SampleBlock
from dalle_mini_impl.data.entries import PictureEntry, entry_from_json, entry_line
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable, dump_json, remove_folder, replace_file, write_json

WORK_FILE = "work.json"
BLOCK_FILE = re.compile(r"(\d{6,})-(\d{6,})(-last)?(-partial)?\.npz")
"""Names of the files of blocks."""
CONTENTS = (WORK_FILE, "[0-9]*.npz", ".*")
"""What the folder holds; the first marks it."""
LOG = "log"
"""Name in a block's file of what was skipped."""
ENDING = ".blocks"
"""Ending of the folder's name, beside what the blocks become."""


@dataclass(frozen=True)
class _BlockFile:
    path: Path
    is_last: bool
    is_partial: bool


@dataclass(frozen=True)
class BlockFolder:
    """A folder of blocks."""

    folder: Path

    def prepare(self, work: Mapping[str, Any]) -> None:
        """Make the folder, or check that the same work was begun there, if any block is finished.

        Args:
            work: everything that the blocks follow from, as JSON values.

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
            raise UserError(f"{path} is damaged ({error!r}); remove {self.folder}, so that all is made anew") from error
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

    def finished(self, *, partial: bool = False) -> FinishedBlocks:
        """The blocks that are finished.

        Args:
            partial: whether those count of which some samples could not be read for the moment.
        """
        files = {block: file for block, file in self._files().items() if partial or not file.is_partial}
        return FinishedBlocks({*files}, {block.part: block.number + 1 for block, file in files.items() if file.is_last})

    def write_block(self, block: SampleBlock, is_last: bool, content: Mapping[str, np.ndarray], log: SkipLog) -> None:
        """Write the file of a block, in place of an earlier one.

        Args:
            block: which.
            is_last: whether it is the last one of its part.
            content: arrays by name.
            log: what was skipped, and why.

        Raises:
            UserError: it cannot be written.
        """
        names = {
            (last, partial): f"{block.part:06d}-{block.number:06d}{'-last' * last}{'-partial' * partial}.npz"
            for last in (False, True)
            for partial in (False, True)
        }
        name = names.pop((is_last, log.may_be_read_later))
        values = {**content, LOG: as_bytes(dump_json(log.as_json()).encode())}
        with replace_file(self.folder / name) as temporary:
            np.savez(temporary, **values)  # type: ignore[arg-type]
        for earlier in names.values():
            (self.folder / earlier).unlink(missing_ok=True)

    def contents(self, names: Iterable[str]) -> Iterator[dict[str, np.ndarray]]:
        """Some arrays of each block's file, in the order of the blocks.

        Raises:
            UserError: a file is damaged; each array has a checksum.
        """
        names = list(names)
        for _, file in sorted(self._files().items()):
            try:
                with np.load(file.path) as content:
                    arrays = {name: content[name] for name in names}
            except (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
                raise UserError(f"{file.path} is damaged ({error}); remove it and repeat the command") from error
            yield arrays

    def skipped(self) -> SkipLog:
        """What was skipped in all blocks.

        Raises:
            UserError: a block is damaged.
        """
        log = SkipLog()
        for content in self.contents([LOG]):
            log.merge(SkipLog.from_json(json.loads(content[LOG].tobytes())))
        return log

    def remove(self) -> None:
        """Remove the folder, when all blocks are joined."""
        remove_folder(self.folder)

    def _files(self) -> dict[SampleBlock, _BlockFile]:
        """The file of each block; of two, which a kill may leave, the one that is not partial."""
        files: dict[SampleBlock, _BlockFile] = {}
        for path in self.folder.iterdir():
            if match := BLOCK_FILE.fullmatch(path.name):
                block, file = (
                    SampleBlock(int(match[1]), int(match[2])),
                    _BlockFile(path, bool(match[3]), bool(match[4])),
                )
                if block not in files or files[block].is_partial:
                    files[block] = file
        return files


def as_bytes(content: bytes) -> np.ndarray:
    """Bytes as an array for `write_block`."""
    return np.frombuffer(content, np.uint8)


def entry_lines(entries: Iterable[PictureEntry]) -> np.ndarray:
    """Entries as an array for `write_block`."""
    return as_bytes(b"".join(map(entry_line, entries)))


def entries_of(lines: np.ndarray) -> Iterator[PictureEntry]:
    """The entries of an array that `entry_lines` gave."""
    for line in lines.tobytes().splitlines():
        yield entry_from_json(json.loads(line))
