"""Timing of several things in turn, so that a noisy machine is noisy for all of them alike."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

STATM = Path("/proc/self/statm")
SAMPLING_SECONDS = 0.005


def wait_for(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device.startswith(("cuda", "mps")):
        torch.accelerator.synchronize()


def median_seconds(
    runs: Mapping[str, Callable[[], Any]], device: str, repeats: int, warm_up: int | None = None
) -> dict[str, float]:
    """Median seconds of each run.

    Args:
        runs: what to time, by name. Each round runs every one of them once.
        device: waited for before the clock is read.
        repeats: rounds that count.
        warm_up: rounds before, which do not; by default one, unless a single one is asked for in all.
    """
    warm_up = min(1, repeats - 1) if warm_up is None else warm_up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + repeats):
        for name, run in runs.items():
            wait_for(device)
            start = time.perf_counter()
            run()
            wait_for(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """Bytes by which memory in use rises at most while something runs; NaN where this cannot be told.

    On a CPU the process is watched from a second thread; memory that is taken again after it was freed, and
    kept by the allocator in between, does not count.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    if device != "cpu" or not STATM.exists():
        run()
        return float("nan")
    pages: list[int] = [_resident_pages()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            pages.append(_resident_pages())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return float((max(pages) - pages[0]) * _page_size())


def _resident_pages() -> int:
    return int(STATM.read_text().split()[1])


def _page_size() -> int:
    import resource

    return resource.getpagesize()
