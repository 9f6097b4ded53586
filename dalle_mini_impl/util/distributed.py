"""Sharing work among the processes that `accelerate launch` has started."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch

from dalle_mini_impl.util.errors import UserError

T = TypeVar("T")


class Processes:
    """The processes that were launched; one, if nothing was.

    Args:
        device: `auto` or a device's name; with several processes on accelerators, `auto` gives each its own.

    Raises:
        UserError: several were launched, but on this device each would work alone.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.index, self.device = int(os.environ.get("WORLD_SIZE", 1)), 0, device
        if self.count > 1:
            from accelerate import PartialState  # takes a second to import

            # Unless told so, accelerate does not connect the processes of a machine that has nothing but a CPU.
            # One may have much more to do than another, which then waits for it.
            cpu = device == "cpu" or not torch.accelerator.is_available()
            state = PartialState(cpu=cpu, timeout=timedelta(days=7))
            check_connected(state.num_processes)
            self.index = state.process_index
            self.device = str(state.device) if device == "auto" else device

    @property
    def is_main(self) -> bool:
        """Whether this one writes the results."""
        return self.index == 0

    def own_items(self, items: Sequence[T]) -> Sequence[T]:
        """The share of this process; the items are the same in all processes."""
        return items[self.index :: self.count]

    def gather(self, results: list[T]) -> list[T]:
        """The results of all processes' shares, in the order of the items; all processes must ask."""
        if self.count == 1:
            return results
        shares: list[list[T]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(shares, results)
        return [shares[n % self.count][n // self.count] for n in range(sum(map(len, shares)))]


def check_connected(connected: int) -> None:
    """Refuse processes that do not know of each other."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != connected:
        raise UserError(
            f"{launched} processes were launched, but on this device each would work alone; "
            f"launch one, or set ACCELERATE_USE_CPU=true"
        )
