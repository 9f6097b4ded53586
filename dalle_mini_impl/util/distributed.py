"""Division of a list of items among the processes that `accelerate launch` started."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

from dalle_mini_impl.util.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long processes wait for each other unless `run.patience` says otherwise: as long as the one that reads a large
set, writes, or has most work takes. PyTorch's own limit is ten minutes on GPUs. A process that fails ends the others
through the launcher, so this limit counts only where a machine vanishes without a word."""


class Processes:
    """The launched processes; a single one if the command was not started by a launcher.

    Args:
        device: `auto` or a device's name; with several processes on accelerators, `auto` gives each its own.

    Raises:
        UserError: several processes were launched, but cannot be connected on this device.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.index = 0
        self.device = device
        if self.count > 1:
            from accelerate import PartialState  # takes a second to import

            # Without cpu=True accelerate does not connect the processes of a machine that has only a CPU.
            cpu = device == "cpu" or not torch.accelerator.is_available()
            state = PartialState(cpu=cpu, timeout=PATIENCE)
            check_connected(state.num_processes)
            self.index = state.process_index
            self.device = str(state.device) if device == "auto" else device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return self.index == 0

    def decide(self, choose: Callable[[], T]) -> T:
        """What the main process chooses, in all processes; every process must call this.

        Args:
            choose: called in the main process alone; the others wait for it.
        """
        if self.count == 1:
            return choose()
        chosen: list[Any] = [choose() if self.is_main else None]
        torch.distributed.broadcast_object_list(chosen)
        return chosen[0]

    def own_items(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process handles, every `count`-th; all processes must pass the same items."""
        return items[self.index :: self.count]

    def gather(self, results: list[T]) -> list[T]:
        """Collect the results for the `own_items` of all processes, in the order of the items.

        Every process must call this.
        """
        if self.count == 1:
            return results
        by_process: list[list[T]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(by_process, results)
        return [by_process[n % self.count][n // self.count] for n in range(sum(map(len, by_process)))]


def check_connected(connected: int) -> None:
    """Refuse to run if fewer processes are connected to each other than were launched.

    Args:
        connected: number of connected processes.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != connected:
        raise UserError(
            f"{launched} processes were launched, but on this device each would work alone; "
            f"launch one, or set ACCELERATE_USE_CPU=true"
        )
