"""Rows of sampling, training and scoring beside another program that keeps one core busy."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from dalle_mini_impl.bench.report import BenchRow

BUSY_LOOP = "while True: pass"
TRAINING_STEPS = 2
SCORINGS = 8


class Worker:
    """A process that does one piece of work each time it is asked to.

    Args:
        work: a key of `WORK`.
        shape: a key of `bench.shapes.SHAPES`, for training.
        environment: variables to set, or with None to leave unset; threads and waiting are read at the start of a
            process.
    """

    def __init__(self, work: str, shape: str, environment: dict[str, str | None]) -> None:
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
        return float(self._process.stdout.readline())

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
def busy_core() -> Iterator[None]:
    """Keep one core busy with another process."""
    with subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) as process:
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            yield
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
