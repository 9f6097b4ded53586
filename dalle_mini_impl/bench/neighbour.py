"""Rows of sampling, training and scoring beside another program that keeps one core busy."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.timing import progress_bar

BUSY_LOOP = "while True: pass"
TRAINING_STEPS = 2
SCORINGS = 8
"""Of 64 pictures each."""
SPINNING = "300000"
"""GNU's default of `GOMP_SPINCOUNT`."""


def neighbour_rows(shape: str, repeats: int) -> Iterator[BenchRow]:
    """Time work alone and beside a busy loop that is pinned to one core, all settings in turn.

    Each setting has processes of its own, because threads and waiting are read when a process starts.

    Args:
        shape: key of `bench.shapes.SHAPES`, for training; sampling and scoring use the included model.
        repeats: rounds of which the median counts.

    Yields:
        Rows named `neighbour/WORK/THREADS` and `neighbour/WORK/THREADS/spinning`: `ours` are the seconds beside the
        busy loop, `theirs` those of one thread alone. The last setting is how OpenMP waits by default.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings: dict[str, dict[str, str | None]] = {
        "1": {"OMP_NUM_THREADS": "1"},
        f"{cores}": {"OMP_NUM_THREADS": f"{cores}", "GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None},
        f"{cores}/spinning": {"OMP_NUM_THREADS": f"{cores}", "GOMP_SPINCOUNT": SPINNING},
    }
    for work in WORK:
        with contextlib.ExitStack() as stack:
            workers = {
                name: stack.enter_context(contextlib.closing(Worker(work, shape, environment)))
                for name, environment in settings.items()
            }
            alone = _medians(workers, repeats, f"timing {work} alone")
            with busy_core():
                beside = _medians(workers, repeats, f"timing {work} beside a busy core")
        for name in settings:
            ratio = beside[name] / alone["1"]
            note = f"alone {alone[name]:.4g} s, beside {ratio:.2f} x one thread alone"
            details = {"alone": alone[name], "beside_to_one_thread_alone": ratio, "shape": shape}
            yield BenchRow(
                f"neighbour/{work}/{name}", beside[name], "1 thread alone", alone["1"], note=note, details=details
            )


def _medians(workers: Mapping[str, "Worker"], repeats: int, what: str) -> dict[str, float]:
    """Median seconds of each worker; rounds ask one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    with progress_bar(repeats * len(workers), what, unit=" runs") as bar:
        for _ in range(repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.seconds())
                bar.update()
    return {name: median(values) for name, values in seconds.items()}


class Worker:
    """A process that does one piece of work each time it is asked to.

    Args:
        work: a key of `WORK`.
        shape: a key of `bench.shapes.SHAPES`, for training.
        environment: variables to set, or with None to leave unset; threads and waiting are read at the start of a
            process.
    """

    def __init__(self, work: str, shape: str, environment: dict[str, str | None]) -> None:
        self._work = work
        variables = {**os.environ, **{name: value for name, value in environment.items() if value is not None}}
        for name, value in environment.items():
            if value is None:
                variables.pop(name, None)
        code = f"from dalle_mini_impl.bench.neighbour import serve; serve({work!r}, {shape!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        self._read()

    def seconds(self) -> float:
        """Do the work once and return the time it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the process for {self._work} ended; its message is above")
        return float(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve(work: str, shape: str) -> None:
    """Do the work once, then again for each line of standard input; print the seconds that each time took."""
    run = WORK[work](shape)
    while True:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)
        if not sys.stdin.readline():
            return


@contextlib.contextmanager
def busy_core() -> Iterator[subprocess.Popen[bytes]]:
    """Keep one core busy with another process."""
    with subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) as process:
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            yield process
        finally:
            process.kill()


def _sampling(shape: str) -> Callable[[], Any]:
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    dalle = DalleMini.from_pretrained("emoji", "cpu")
    return lambda: dalle.generate("a red heart", candidates=32, keep=8, seed=0)


def _training(shape: str) -> Callable[[], Any]:
    import torch

    from dalle_mini_impl.bench.shapes import SHAPES
    from dalle_mini_impl.bench.training import trainer
    from dalle_mini_impl.config.training import OptimizerConfig

    sizes = SHAPES[shape]
    step = trainer(sizes, "cpu", OptimizerConfig(), compiled=False)
    text_ids = torch.randint(2, sizes.text_vocab, (sizes.train_batch, sizes.text_length))
    image_ids = torch.randint(0, sizes.image_vocab, (sizes.train_batch, sizes.image_length))
    return lambda: [step(text_ids, image_ids) for _ in range(TRAINING_STEPS)]


def _scoring(shape: str) -> Callable[[], Any]:
    import torch

    from dalle_mini_impl.scorer.scorer import Scorer

    scorer = Scorer.from_pretrained("emoji", "cpu")
    pixels = torch.rand(64, 3, scorer.image_size, scorer.image_size) * 2 - 1
    return lambda: [scorer.score(pixels, "a red heart") for _ in range(SCORINGS)]


WORK = {"sampling": _sampling, "training": _training, "scoring": _scoring}
"""Name -> function that takes the shape and returns what is timed."""
