"""Reads a source in blocks: stretches of samples, each of which several processes and repeated runs read alike.

A block is always the same stretch of the same part of the source, whoever reads it and whatever was read before. So
work on a source is divided, and continued after an interruption, block by block.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.parts import SourcePart, read_sample
from dalle_mini_impl.data.readers import source_parts


@dataclass(frozen=True, order=True)
class SampleBlock:
    """A stretch of samples of one part of a source, by their numbers from 0."""

    part: int
    number: int


FIRST = SampleBlock(0, 0)


@dataclass(frozen=True)
class SourcePicture:
    """A picture of a block."""

    block: SampleBlock
    source: int
    """Number of the source among those that the config names."""
    key: str
    """Identifies it among the pictures of all sources."""
    pair: Pair


@dataclass(frozen=True)
class BlockEnd:
    """All pictures of a block have been read."""

    block: SampleBlock
    is_last: bool
    """Whether it is the last one of its part."""
    log: SkipLog
    """What was skipped, and why."""


@dataclass
class FinishedBlocks:
    """The blocks that need not be read again."""

    blocks: Collection[SampleBlock]
    lengths: Mapping[int, int]
    """Part -> number of its blocks, as far as its last one is finished."""

    def is_whole(self, part: int) -> bool:
        """Whether all blocks of a part are finished."""
        return part in self.lengths and all(
            SampleBlock(part, number) in self.blocks for number in range(self.lengths[part])
        )


@dataclass
class SourceBlocks:
    """The blocks of the sources that a config names."""

    parts: list[tuple[int, int, SourcePart]]
    """Number of the source, one of how many samples counts, and part."""
    size: int
    """Samples of a block."""
    several: bool
    """Whether keys start with the number of the source."""
    _log: SkipLog
    """Of the samples that are being read."""
    _source_log: SkipLog
    """Of the sources as a whole."""

    @classmethod
    def open(cls, config: DataConfig, size: int, captions: Literal["needed", "optional"] = "needed") -> "SourceBlocks":
        """List the parts of the sources; one object is read once.

        Args:
            config: names the sources.
            size: samples of a block.
            captions: as for `read_pairs`.

        Raises:
            UserError: a source cannot be read.
        """
        log, source_log = SkipLog(), SkipLog()
        of_source = [source_parts(path, log, source_log, captions) for path in config.paths]
        parts = []
        for number, own in enumerate(of_source):
            leaves_out_parts = len(own) >= config.every  # as `read_parts` does, which is faster
            step, every = (config.every, 1) if leaves_out_parts else (1, config.every)
            parts += [(number, every, part) for part in own[::step]]
        return cls(parts, size, bool(config.sources), log, source_log)

    def read(self, finished: FinishedBlocks, worker: int = 0, workers: int = 1) -> Iterator[SourcePicture | BlockEnd]:
        """Read one worker's blocks that are not finished.

        Args:
            finished: blocks to leave out.
            worker: whose blocks to read, 0 to `workers - 1`.
            workers: number of those that read at the same time. Each reads whole parts if there are at least as many,
                else blocks of every part.

        Yields:
            The pictures of a block, then its end.
        """
        first_log = self._source_log  # belongs to the first block
        by_part = len(self.parts) >= workers
        for number, (source, every, part) in enumerate(self.parts):
            if (by_part and number % workers != worker) or finished.is_whole(number):
                continue
            part_log = SkipLog()
            samples = itertools.islice(iter(part(part_log)), 0, None, every)
            upcoming = next(samples, None)
            for block in (SampleBlock(number, index) for index in itertools.count()):
                is_own = by_part or (number + block.number) % workers == worker
                is_read = is_own and block not in finished.blocks
                for _ in range(self.size):
                    if upcoming is None:
                        break
                    if is_read and (pair := read_sample(upcoming, self._log)):
                        key = f"{source}/{pair.key}" if self.several else pair.key
                        yield SourcePicture(block, source, key, pair)
                    upcoming = next(samples, None)
                log = SkipLog()
                for part_of_log in (*([first_log] if block == FIRST else []), part_log.take(), self._log.take()):
                    log.merge(part_of_log)
                if is_read:
                    yield BlockEnd(block, upcoming is None, log)
                if upcoming is None:
                    break
