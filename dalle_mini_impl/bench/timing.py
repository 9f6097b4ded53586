"""Time and memory of several runs, interleaved, so that noise of the machine affects all of them alike."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

STATM = Path("/proc/self/statm")
"""Memory use of this process on Linux, in pages."""
SAMPLING_SECONDS = 0.005
"""Interval at which memory use is read."""


def synchronize(device: str) -> None:
    """Wait until a device has finished all work queued on it."""
    if device.startswith(("cuda", "mps")):
        torch.accelerator.synchronize()


def progress_bar(total: float, what: str, **options: Any) -> "tqdm[Any]":
    """A progress bar on a terminal, which leaves nothing behind.

    Args:
        total: of the updates.
        what: is measured.
        **options: of tqdm.
    """
    return tqdm(total=total, desc=what, leave=False, disable=None, **options)


def median_seconds(
    runs: Mapping[str, Callable[[], Any]], device: str, repeats: int, warm_up: int | None = None
) -> dict[str, float]:
    """Median seconds of each run.

    Args:
        runs: functions to time, by name. Each round calls every one of them once.
        device: synchronised before the clock is read.
        repeats: rounds that count.
        warm_up: rounds before those, which do not count; by default one, or none if `repeats` is 1.
    """
    warm_up = min(1, repeats - 1) if warm_up is None else warm_up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    rounds = warm_up + repeats
    with progress_bar(rounds * len(runs), "timing", unit=" runs") as bar:
        for number in range(rounds):
            for name, run in runs.items():
                bar.set_description(f"timing {name}", refresh=not number)  # a first run may take minutes
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                if number >= warm_up:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return {name: median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """Largest increase of memory in use, in bytes, while a function runs; NaN where it cannot be measured.

    On a CPU a second thread reads the process's resident memory. Memory that the allocator had kept after an earlier
    use does not count.
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
    import resource  # which Windows lacks

    return resource.getpagesize()
