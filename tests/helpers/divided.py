"""Tasks for several processes, which import them by name."""

import os
import signal
import time
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.worker_processes import count_done

SECONDS = 60
"""How long a process works that nobody stops."""


def share(number: int, count: int) -> tuple[int, int, int]:
    """Its arguments, and the process."""
    for item in range(1, 41):
        count_done(item)
    return number, count, os.getpid()


def share_of_a_killed_process(number: int, count: int) -> None:
    """The first process ends by SIGKILL."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def lasting_share(stopped: Path, event: str, number: int, count: int) -> None:
    """The first process works until it is stopped, the last meets a mistake or has the program interrupted."""
    if number == count - 1 and event == "mistake":
        raise UserError("expected another share, got the last")
    if number == count - 1:
        os.kill(os.getpid(), signal.SIGINT)  # as in a terminal, where all get it
        os.kill(os.getppid(), signal.SIGINT)
        return
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            count_done(1)
    except KeyboardInterrupt:
        stopped.touch()
        raise


def refused_share(number: int, count: int) -> None:
    """The last process meets a user's mistake."""
    if number == count - 1:
        raise UserError("expected another share, got the last")
