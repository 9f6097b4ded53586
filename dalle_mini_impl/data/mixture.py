"""Several sources in one store, each with a weight: the pictures of a heavier one are shown more often."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.source_files import FileStates, describe_changes, source_states


def read_sources(config: DataConfig, log: SkipLog) -> Iterator[tuple[int, str, Pair]]:
    """Read every captioned picture of the sources that a config names, one source after another.

    Args:
        config: names them.
        log: receives what was skipped, and why.

    Yields:
        Number of the source, key of the picture among those of all sources, and the picture.

    Raises:
        UserError: a source cannot be read; at once, before anything is read.
    """
    readers = [read_pairs(path, log, captions="optional", workers=config.every) for path in config.paths]

    def pairs() -> Iterator[tuple[int, str, Pair]]:
        for number, reader in enumerate(readers):
            for pair in reader:
                yield number, f"{number}/{pair.key}" if config.sources else pair.key, pair

    return pairs()


def states_of(paths: Sequence[str], known: Mapping[str, list[int]]) -> FileStates:
    """The present state of the files of all sources; those of several sources are named `NUMBER/FILE`.

    Args:
        paths: of the sources.
        known: what an earlier call returned, or nothing; see `source_states`.
    """
    if len(paths) == 1:
        return source_states(paths[0], known)
    states: FileStates = {}
    for number, path in enumerate(paths):
        of_source = _of_source(known, number)
        states |= {f"{number}/{name}": state for name, state in source_states(path, of_source).items()}
    return states


def describe_source_changes(paths: Sequence[str], before: Mapping[str, list[int]]) -> str:
    """What was added to, changed in or removed from sources; empty if nothing was. One that is gone is left out.

    Args:
        paths: of the sources.
        before: what `states_of` returned earlier.
    """
    now = states_of(paths, before)
    if len(paths) == 1:
        return describe_changes(before, now) if any(now.values()) else ""
    there = [number for number in range(len(paths)) if any(_of_source(now, number).values())]
    prefixes = tuple(f"{number}/" for number in there)
    kept = [{name: state for name, state in states.items() if name.startswith(prefixes)} for states in (before, now)]
    return describe_changes(*kept)


def _of_source(states: Mapping[str, list[int]], number: int) -> FileStates:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}


def repeat_rows(rows: np.ndarray, pictures: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """Repeat the rows of pictures as often as the weight of their source is that of the lightest source.

    A ratio of 2.25 shows a quarter of the pictures three times and the others twice, always the same ones. Order and
    number of the rows follow from the arguments alone, so that a run can be resumed.

    Args:
        rows: (n,) rows of the store, ascending.
        pictures: of each source in the store, in the order of the sources.
        weights: of each source.

    Returns:
        (m,) rows of the store, ascending; each of `rows` is there at least once.
    """
    source = np.searchsorted(np.cumsum(pictures), rows, side="right")
    ratios = np.array(weights)[source] / min(weights)
    # Multiples of the golden ratio: every stretch of rows has its share of repeated ones.
    extra = rows * ((5**0.5 - 1) / 2) % 1.0 < ratios % 1.0
    return np.repeat(rows, np.floor(ratios).astype(np.int64) + extra)
