"""Runs a function in a forked process, which a test can kill at any moment."""

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from helpers.training import DEADLINE


def fork() -> int:
    """`os.fork`, whose child never frees what it has inherited.

    Some of it, such as a process group of torch, would wait for threads that a forked process does not have.
    """
    gc.collect()
    process = os.fork()
    if process == 0:
        gc.freeze()
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the parent, and a killed process may hold it
    return process


class Forked:
    """A copy of this process that runs a function and ends: with 0, or with 1 and a traceback in `output`.

    It starts in milliseconds, as everything is imported already.
    """

    def __init__(self, output: Path, function: Callable[..., Any], *arguments: Any) -> None:
        self.output = output
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = fork()
        if self.process == 0:
            self._run(function, arguments)

    def wait(self, seconds: float = DEADLINE) -> int | None:
        """Wait for the end; returns the exit code, negative for a signal, or None if the time was over before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)  # a turn of polling; nothing depends on its length
        return None

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition holds, while the process runs."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            process, status = os.waitpid(self.process, os.WNOHANG)
            assert not process, (status, self.output.read_text())

    def kill(self) -> int:
        """Kill it with SIGKILL, if it runs, and return its exit code."""
        os.kill(self.process, signal.SIGKILL)
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        code = 1
        try:
            with self.output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = sys.stderr = file
                try:
                    function(*arguments)
                    code = 0
                except BaseException:
                    traceback.print_exc(file=file)
        finally:
            os._exit(code)


def kill_self(*_: Any, **__: Any) -> None:
    """End this process by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
