"""Ending a program together with the `accelerate launch` that started it. Imports no torch.

When a process that it started fails, `accelerate launch` prints a traceback of its own below whatever the process
printed (`CalledProcessError` with one process, torch elastic's `ChildFailedError` with several). After a user's mistake
that traceback only hides the one line that helps. So the process ends the launcher before it ends itself. Why by
signals, and by which: docs/decisions/005-a-mistake-ends-the-launcher.md.

All of this needs Linux's `/proc`; elsewhere the line is printed and the launcher's traceback follows.
"""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
"""Linux's `prctl` operation that sets the signal a process gets when its parent ends (linux/prctl.h)."""
MAIN_PROCESS_SECONDS = 10.0
"""How long another process leaves it to the main process to report the same mistake. Processes come to it within about
a second of each other, unless the mistake is in this one alone."""
SIGNAL_SECONDS = 2.0
"""How long a signal may take to end this process before it ends by itself."""


def is_launcher(command: list[str]) -> bool:
    """Whether a command line, split into words, is `accelerate launch …` in one of its spellings."""
    if not command or not Path(command[0]).name.startswith("python"):
        return False
    words = [word for word in command[1:4] if not word.startswith("-")]  # without python's own options, such as -m
    program, *rest = [Path(words[0]).name, *words[1:]] if words else [""]
    if program in ("accelerate-launch", "accelerate.commands.launch", "launch.py"):
        return True
    return program in ("accelerate", "accelerate.commands.accelerate_cli", "accelerate_cli.py") and rest[:1] == [
        "launch"
    ]


def find_launcher() -> int | None:
    """Process id of the `accelerate launch` that started this process directly; None if something else did."""
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getppid()
    return parent if runs_launcher(parent) else None


@functools.cache  # a process that is about to end, because another one ended it, has no command line any more
def runs_launcher(process: int) -> bool:
    """Whether the process of this id runs `accelerate launch`."""
    return is_launcher(command_line(process))


def command_line(process: int) -> list[str]:
    """The words of a process's command line; none if it is ending, or cannot be looked at."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []
    return words[:-1]


def is_one_of_several() -> bool:
    """Whether this process was started by torch elastic, which `accelerate launch` uses for several processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_launcher() -> None:
    """Have the kernel end this process when the launcher of several processes ends, however it ends.

    So no process stays behind when one of them ends the launcher, even while this one starts: it would wait for the
    others until a time limit. Does nothing under other parents.
    """
    if not sys.platform.startswith("linux") or not is_one_of_several():
        return
    parent = os.getppid()
    # A launcher that is ending has no command line for a while before its processes lose their parent.
    if runs_launcher(parent) or not command_line(parent):
        end_with_parent(parent)
    elif parent == 1 and not any("torch" in word for word in command_line(parent)):  # the launcher has ended
        os._exit(1)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent, of this process id, ends, however it ends (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def exit_with(message: str, code: int) -> NoReturn:
    """Print a message to stderr and end this program; its launcher and the launcher's other processes end as well.

    Of several processes only the main one of each machine prints, unless it does not come to the same mistake.

    Args:
        message: printed with a newline; nothing is printed if it is empty.
        code: exit status of this process. A launcher ends by a signal, which shells report as a status above 128.
    """
    launcher = find_launcher()
    several = launcher is not None and is_one_of_several()
    if several and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(MAIN_PROCESS_SECONDS)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        if message:
            print(message, file=sys.stderr, flush=True)
    if launcher is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Torch elastic answers SIGTERM with a traceback; nothing can answer SIGKILL.
            os.kill(launcher, signal.SIGKILL if several else signal.SIGTERM)
    if several:
        time.sleep(SIGNAL_SECONDS)  # `end_with_launcher` ends this process here
    sys.exit(code)
