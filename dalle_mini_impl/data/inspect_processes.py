"""Examines a data source by several processes, each of which reads a part of it."""

import sys
from functools import partial

from tqdm import tqdm

from dalle_mini_impl.data.inspect import Inspection
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.memory import check_processes
from dalle_mini_impl.util.worker_processes import count_done, divide


def inspect_source(source: str, log: SkipLog, inspection: Inspection, processes: int = 1) -> Inspection:
    """Measure every picture of a source, with progress on standard error.

    Args:
        source: as for `read_pairs`.
        log: receives what was skipped, and why.
        inspection: empty; says what to measure.
        processes: how many read at the same time. Numbers do not depend on it, the order of what is listed does, and
            in large sets which pictures are compared with each other.

    Returns:
        What was measured.

    Raises:
        UserError: there are too many processes for the memory, the source cannot be read, or a process was ended from
            outside.
    """
    check_processes(processes, "--processes")
    pairs = read_pairs(source, log)  # says at once what is wrong with the source
    print(f"reading {source}", file=sys.stderr)
    with tqdm(desc="inspecting", unit=" pictures", delay=2) as bar:
        if processes == 1:
            for pair in pairs:
                inspection.add(pair)
                bar.update()
            return inspection
        for measured, skipped in divide(partial(_inspect_part, source, inspection), processes, bar, f"read {source}"):
            inspection.merge(measured)
            log.merge(skipped)
    return inspection


def _inspect_part(source: str, inspection: Inspection, worker: int, workers: int) -> tuple[Inspection, SkipLog]:
    """Measure one part, in a process of its own."""
    log = SkipLog()
    for number, pair in enumerate(read_pairs(source, log, worker=worker, workers=workers), 1):
        inspection.add(pair)
        count_done(number)
    return inspection, log
