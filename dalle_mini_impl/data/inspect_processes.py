"""Examines a data source by several processes, each of which reads a part of it."""

import multiprocessing
import sys
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from dalle_mini_impl.data.inspect import Inspection
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import check_processes

SECONDS_BETWEEN_LOOKS = 0.2
"""How often the progress of other processes is looked at."""
COUNTED_TOGETHER = 16
"""Pictures after which a process says that they are done."""

_counter: Any = None
"""In a process that reads a part: the number of pictures of all parts."""


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
        context = multiprocessing.get_context("spawn")  # threads of libraries do not survive a fork
        counter = context.Value("Q", 0)
        with ProcessPoolExecutor(processes, context, _remember_counter, (counter,)) as pool:
            parts = [pool.submit(_inspect_part, source, inspection, part, processes) for part in range(processes)]
            waiting: set[Future[tuple[Inspection, SkipLog]]] = set(parts)
            while waiting:
                waiting = wait(waiting, SECONDS_BETWEEN_LOOKS).not_done
                bar.update(counter.value - bar.n)
            for part in parts:
                try:
                    measured, skipped = part.result()
                except BrokenProcessPool as error:
                    raise UserError(
                        f"a process that read {source} was ended from outside, perhaps for want of memory; "
                        f"use fewer --processes than {processes}"
                    ) from error
                inspection.merge(measured)
                log.merge(skipped)
    return inspection


def _remember_counter(counter: Any) -> None:
    global _counter
    _counter = counter


def _inspect_part(source: str, inspection: Inspection, worker: int, workers: int) -> tuple[Inspection, SkipLog]:
    """Measure one part, in a process of its own."""
    log = SkipLog()
    for number, pair in enumerate(read_pairs(source, log, worker=worker, workers=workers), 1):
        inspection.add(pair)
        if number % COUNTED_TOGETHER == 0:
            with _counter.get_lock():
                _counter.value += COUNTED_TOGETHER
    return inspection, log
