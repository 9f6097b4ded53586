"""Running a click command as a program: mistakes end it with one line, never with a traceback. Imports no torch."""

import contextlib
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.launcher import end_with_launcher, exit_with
from dalle_mini_impl.util.terminal import escaped_output
from dalle_mini_impl.util.text import printable

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes: what shells use for wrong arguments, and for a program that Ctrl-C ended."""
LOST_WORKER = (
    "expected the processes that make batches to work, got one that was ended from outside, perhaps for lack of "
    "memory; choose fewer workers"
)
"""What is said when `is_lost_worker`."""

_interrupted = False
"""Whether a signal has asked this program to end."""


def run_program(command: click.Command, name: str) -> None:
    """Run a command with the arguments of this process.

    Bad input, errors of the system and a full memory end it with one line on stderr and exit code 2, and with it the
    `accelerate launch` that started it (`util/launcher.py`); an interruption, by Ctrl-C or SIGTERM, ends it with code
    130. Leaves the process group, if the command joined one. Control characters in what it prints are shown as escapes
    (`util/terminal.py`).

    Args:
        command: the command.
        name: what its usage line calls the program.
    """
    _open_closed_streams()
    with escaped_output(), _remembered_interruption():
        _run(command, name)


def _open_closed_streams() -> None:
    """Put streams to nowhere in the place of those that the caller has closed, for which Python has None.

    They also take the free file numbers: those of standard streams must not be given to a file that is written.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _run(command: click.Command, name: str) -> None:
    end_with_launcher()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with one_line_warnings():
            command.main(prog_name=name, standalone_mode=False)
        leave_process_group()
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2 and later: a group without a command
            exit_with(error.format_message(), BAD_INPUT)
        exit_with(f"error: {usage_error(error, name)}", BAD_INPUT)
    except (click.Abort, KeyboardInterrupt) as error:
        interrupt = error.__cause__ or error  # click raises Abort from KeyboardInterrupt
        exit_with("; ".join(["stopped", *map(str, interrupt.args)]), INTERRUPTED)
    except BrokenPipeError:  # the program that reads our output, such as head, has ended
        sys.exit(1)
    except UserError as error:
        exit_with(f"error: {printable(str(error))}", BAD_INPUT)
    except OSError as error:  # of the system, where no command knows more to say about it
        exit_with(f"error: {printable(_system_error(error))}", BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if is_lost_worker(error):
            exit_with(f"error: {LOST_WORKER}", BAD_INPUT)
        if not is_out_of_memory(error):
            raise
        exit_with("error: the memory is full; ask for less at a time, or close other programs", BAD_INPUT)


def _system_error(error: OSError) -> str:
    try:
        os.getcwd()
    except OSError as missing:
        return f"cannot use the current folder: {missing.strerror}; change to another folder"
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    place = "" if name is None else f"{name}: "
    return f"{place}{error.strerror or error}; check the path, its access rights and the space on its disk"


def is_lost_worker(error: Exception) -> bool:
    """Whether PyTorch, which has no class for it, says that a process that makes batches has ended."""
    return str(error).startswith("DataLoader worker (pid")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be allocated: one of Python, numpy, or torch on any device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error)  # of torch on a CPU, which has no class of its own


@contextlib.contextmanager
def _remembered_interruption() -> Iterator[None]:
    """Answer Ctrl-C by `_interrupt`, unless it is ignored, as shells have it in the background."""
    global _interrupted
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        _interrupted = False
        signal.signal(signal.SIGINT, before)


def check_interruption() -> None:
    """End what goes on although it was interrupted: Python drops exceptions that arrive in a destructor or a callback.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM has come since `run_program` began.
    """
    if _interrupted:
        raise KeyboardInterrupt


def _interrupt(number: int, _: Any) -> NoReturn:
    """Have Ctrl-C, and SIGTERM, which job schedulers send, remove what is half written."""
    global _interrupted
    _interrupted = True
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise KeyboardInterrupt


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print each warning as one line on standard error, without the file and line of code that it came from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"warning: {printable(str(message))}", err=True)

    original = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


def usage_error(error: click.ClickException, program: str) -> str:
    """The message of click's error in one line that ends with what to do, as those of `UserError` do."""
    message = printable(error.format_message()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else program
    return f"{message[:1].lower()}{message[1:]}; see {command} --help"


def leave_process_group() -> None:
    """Destroy torch's process group, if this process is in one.

    A group that still exists when Python exits is freed while its threads run, which sometimes aborts the process
    ("terminate called without an active exception"). Everything that refers to the group, such as a
    DistributedDataParallel, has to be freed before: if one of those is the last reference, the group's threads are
    joined with Python's lock held, and sometimes wait for that lock forever.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()
