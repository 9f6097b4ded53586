"""The samples of a source before they are read, and how workers divide them among themselves."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.sample import UnusableSample
from dalle_mini_impl.util.text import printable

PendingSample = tuple[str, Callable[[], Pair]]
"""Name of a sample, for the log, and a function that reads it or raises `UnusableSample`."""
SourcePart = Callable[[SkipLog], Iterable[PendingSample]]
"""A tar or a Parquet file, or the whole of a folder or a table: yields its samples, each of which can be read until the
next one is asked for. The log receives faults of the part itself."""


def read_samples(samples: Iterable[PendingSample], log: SkipLog, worker: int, workers: int) -> Iterator[Pair]:
    """Read every `workers`-th sample, starting with number `worker`, and log those that cannot be used."""
    for sample in itertools.islice(samples, worker, None, workers):
        if pair := read_sample(sample, log):
            yield pair


def read_sample(sample: PendingSample, log: SkipLog) -> Pair | None:
    """Read a sample; None for one that cannot be used, which is logged."""
    name, read = sample
    try:
        return read()
    except UnusableSample as reason:
        log.add(printable(name), printable(str(reason)), may_be_read_later=reason.may_be_read_later)
        return None


def read_parts(parts: Sequence[SourcePart], log: SkipLog, worker: int, workers: int) -> Iterator[Pair]:
    """Read one worker's share: whole parts if there are at least as many as workers, else samples of every part.

    Args:
        parts: of the source.
        log: receives what was skipped, and why.
        worker: which share to read, 0 to `workers - 1`.
        workers: number of shares.
    """
    by_part = len(parts) >= workers
    for number, part in enumerate(parts):
        is_own = number % workers == worker
        part_log = log if is_own else SkipLog()  # one worker alone reports on a part as a whole
        if not by_part:
            yield from read_samples(part(part_log), log, worker, workers)
        elif is_own:
            yield from read_samples(part(part_log), log, 0, 1)


def refusal(reason: str) -> Callable[[], Pair]:
    """The reading of a sample that is known to be unusable."""

    def refuse() -> Pair:
        raise UnusableSample(reason)

    return refuse
