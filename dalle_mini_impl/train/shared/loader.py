"""Batches made ahead by worker processes, while the trainer computes.

A worker makes the whole batch of a step, which follows from the step's number alone. So batches are the same however
many workers there are, and a resumed run needs no state of theirs.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.util.command_line import LOST_WORKER, is_lost_worker
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import leave_locks_to_parent
from dalle_mini_impl.util.launcher import end_with_parent
from dalle_mini_impl.util.memory import check_processes

T = TypeVar("T")

AHEAD = 2
"""Steps whose batches each worker makes before they are asked for."""


def passes(
    make: Callable[[int, slice], T], rows: Sequence[slice], first_step: int, run: RunConfig, device: torch.device
) -> Iterator[T]:
    """The batches of all passes of a step and of all following steps, in order, without an end.

    They are made by `run.workers` processes, or when asked for if there are none. Workers are forked with the first
    batch and end with the iterator. They compute with one thread, and leave the device alone. When one is ended from
    outside, such as for lack of memory, PyTorch may raise a RuntimeError in whatever the trainer does (`run_program`).

    Args:
        make: makes the batch of a step and some rows, tensors on the CPU in lists or tuples; nothing may be random in
            it but what follows from the step.
        rows: of the passes of each step.
        first_step: from 0.
        run: settings of the run, of which `workers` counts.
        device: that the batches are for; for CUDA those of workers lie in pinned memory.

    Raises:
        UserError: `make` raised it, there are too many workers for the memory, one was ended from outside, or this
            system cannot fork processes.
    """
    if not run.workers:
        for step in itertools.count(first_step):
            for part in rows:
                yield make(step, part)
    for batches in load(_Steps(make, rows), run.workers, "run.workers", device, _From(first_step)):
        yield from batches


def load(
    dataset: Dataset[Any], workers: int, setting: str, device: torch.device, sampler: Sampler[int] | None = None
) -> Iterator[Any]:
    """The items of a data set that worker processes make ahead; see `passes` for what they may do.

    Args:
        dataset: makes an item, or has a UserError for one in its place.
        workers: their number, at least one.
        setting: that asks for them, for messages.
        device: that the items are for.
        sampler: chooses the items, unless each worker's data set yields its own.

    Raises:
        UserError: an item is one, there are too many workers for the memory, one was ended from outside, or this system
            cannot fork processes.
    """
    check_processes(workers, setting)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UserError(f"expected {setting} 0 on a system that cannot fork processes, got {workers}; leave it out")
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",
        worker_init_fn=partial(_prepare_worker, os.getpid()),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw from the generator of the training
    )
    # A worker must not collect what it has inherited: the end of a process group waits for threads it does not have.
    gc.freeze()
    try:
        items = iter(loader)
    finally:
        gc.unfreeze()
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # "Caught …" begins what `make` raised. Connections break where a worker ends with a batch on its way.
            if str(error).startswith("Caught ") or (isinstance(error, RuntimeError) and not is_lost_worker(error)):
                raise
            with contextlib.suppress(RuntimeError):  # or deleting the iterator would report the loss once more
                items._shutdown_workers()  # type: ignore[attr-defined]
            raise UserError(LOST_WORKER) from error
        if isinstance(item, UserError):
            raise item
        yield item


class _From(Sampler[int]):
    """A number and all following ones."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)


class _Steps(Dataset[Any]):
    """The batches of the passes of all steps, by the step's number; where they cannot be made, the mistake."""

    def __init__(self, make: Callable[[int, slice], Any], rows: Sequence[slice]) -> None:
        self._make, self._rows = make, rows

    def __getitem__(self, step: int) -> list[Any] | UserError:
        try:
            return [self._make(step, rows) for rows in self._rows]
        except UserError as error:  # raised here, it would come out of a worker with a traceback in its message
            return error


def _prepare_worker(trainer: int, worker: int) -> None:
    """Have a worker end with the trainer, which alone answers Ctrl-C and SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_locks_to_parent()
    end_with_parent(trainer)
