"""Tasks for several processes, which import them by name."""

import os
import signal

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.worker_processes import count_done


def share(number: int, count: int) -> tuple[int, int, int]:
    """Its arguments, and the process."""
    for item in range(1, 41):
        count_done(item)
    return number, count, os.getpid()


def share_of_a_killed_process(number: int, count: int) -> None:
    """The first process ends by SIGKILL."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def refused_share(number: int, count: int) -> None:
    """The last process meets a user's mistake."""
    if number == count - 1:
        raise UserError("expected another share, got the last")
