"""Work that several processes of this machine divide, with their progress together."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.launcher import end_with_parent

R = TypeVar("R")

SECONDS_BETWEEN_LOOKS = 0.2
"""How often the progress of the processes is looked at."""
COUNTED_TOGETHER = 16
"""Items after which a process says that they are done."""

_counter: Any = None
"""In one of the processes: the number of items that all have done."""
_ending: Any = None
"""In one of the processes: the event that nobody waits for its results any more."""


def divide(task: Callable[[int, int], R], processes: int, bar: "tqdm[Any]", what: str) -> list[R]:
    """What each of several processes returns; they end with this one, which alone answers Ctrl-C.

    Args:
        task: from an importable module; gets the number of the process and how many there are, and calls `count_done`.
            When this process is interrupted, or another task fails, it is left by a KeyboardInterrupt from there.
        processes: how many.
        bar: shows what all have done.
        what: they do, for the message.

    Raises:
        UserError: one was ended from outside.
    """
    context = multiprocessing.get_context("spawn")  # threads of libraries do not survive a fork
    counter, ending = context.Value("Q", 0), context.Event()
    with ProcessPoolExecutor(processes, context, _prepare, (counter, ending, os.getpid())) as pool:
        try:
            parts = [pool.submit(task, number, processes) for number in range(processes)]
            waiting: set[Future[R]] = set(parts)
            while waiting:
                done, waiting = wait(waiting, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
                bar.update(counter.value - bar.n)
                for part in done:
                    part.result()  # or what it raised
            return [part.result() for part in parts]
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that {what} was ended from outside, perhaps for want of memory; "
                f"use fewer --processes than {processes}"
            ) from error
        finally:
            ending.set()  # or the pool, which waits for its processes, would have them finish their shares


def count_done(number: int) -> None:
    """In one of the processes, say after each item how many it has done.

    Raises:
        KeyboardInterrupt: nobody waits for the results any more.
    """
    if _ending.is_set():
        raise KeyboardInterrupt
    if number % COUNTED_TOGETHER == 0:
        with _counter.get_lock():
            _counter.value += COUNTED_TOGETHER


def _prepare(counter: Any, ending: Any, parent: int) -> None:
    global _counter, _ending
    _counter, _ending = counter, ending
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
