"""Image ids of the blocks of a source, each in a file of its own until all are joined to a token cache.

What processes write into the folder is the same however many there are, and so is the cache.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dalle_mini_impl.data.block_folder import BlockFolder, entries_of, entry_lines
from dalle_mini_impl.data.blocks import SampleBlock
from dalle_mini_impl.data.entries import PictureEntry, write_entries
from dalle_mini_impl.data.pair import SkipLog

ENTRIES, COUNTS = "entries", "counts"
"""Names in a block's file of the lines of a split's entries, and of the number of pictures of each split."""
SPLITS = ("train", "validation")


class EncodedBlocks(BlockFolder):
    """A folder of encoded blocks."""

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
        content = {f"{split}/{name}": array for split, own in arrays.items() for name, array in own.items()}
        content |= {f"{split}/{ENTRIES}": entry_lines(entries[split]) for split in SPLITS}
        content[COUNTS] = np.array([len(entries[split]) for split in SPLITS])
        self.write_block(block, is_last, content, log)

    def count(self) -> dict[str, int]:
        """Number of pictures of each split in all blocks.

        Raises:
            UserError: a block is damaged.
        """
        totals = np.zeros(len(SPLITS), np.int64)
        for content in self.contents([COUNTS]):
            totals += content[COUNTS]
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
        for split, count in counts.items():
            (folder / split).mkdir()
            for name, (number_type, shape) in arrays.items():
                own = (count, *(shape if split == "train" else (1, *shape[1:])))
                header = {"descr": np.dtype(number_type).str, "fortran_order": False, "shape": own}
                with (folder / split / name).open("wb") as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for content in self.contents([f"{split}/{name}"]):
                        file.write(content[f"{split}/{name}"].tobytes())
            lines = (content[f"{split}/{ENTRIES}"] for content in self.contents([f"{split}/{ENTRIES}"]))
            write_entries(folder / split, itertools.chain.from_iterable(map(entries_of, lines)))
