import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import click
import pytest
import torch
from tqdm import tqdm

from dalle_mini_impl.util.command_line import check_interruption, run_program
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a function as a program that fails; gives its exit code and what it prints to stderr."""

    def run(function, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as caught:
            run_program(click.command()(function), "program")
        return caught.value.code, capsys.readouterr().err

    return run


def raising(error):
    def function():
        raise error

    return function


def test_bad_input_ends_with_one_line(run):
    assert run(raising(UserError("got this, expected that"))) == (2, "error: got this, expected that\n")


HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b1mb\r\nc\u202ed\udcff"
"""Clears a terminal, renames it, returns to the start of the line, and turns the text that follows around."""


def test_messages_cannot_steer_the_terminal(run):
    shown = r"a\u001b]0;title\u0007\u001b[2J\u009b1mb c\u202ed\udcff"

    def warn_and_fail():
        warnings.warn(HOSTILE, stacklevel=1)
        raise UserError(HOSTILE)

    assert run(warn_and_fail) == (2, f"warning: {shown}\nerror: {shown}\n")
    code, errors = run(lambda: None, "\x1b[2Jb")
    assert code == 2
    assert r"\u001b[2Jb" in errors
    assert "\x1b" not in errors


def test_wrong_arguments_end_with_one_line(run):
    code, errors = run(lambda: None, "--colour")
    assert code == 2
    assert errors.startswith("error: no such option")
    assert errors.endswith("; see program --help\n")


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [(KeyboardInterrupt(), "stopped"), (KeyboardInterrupt("--resume continues"), "stopped; --resume continues")],
)
def test_an_interrupted_program_ends_with_one_line(run, interrupt, line):
    assert run(raising(interrupt)) == (130, f"\n{line}\n")  # click ends the terminal's line, which shows ^C


def test_sigterm_ends_as_an_interruption_does_and_leaves_nothing_behind(run, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)

    def stopped_while_writing():
        with replace_file(tmp_path / "result") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        assert run(stopped_while_writing) == (130, "\nstopped\n")
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_that_python_has_dropped_is_noticed(run):
    def working_on():
        with contextlib.suppress(KeyboardInterrupt):  # as Python does in a destructor
            os.kill(os.getpid(), signal.SIGINT)
        check_interruption()

    assert run(working_on) == (130, "\nstopped\n")
    check_interruption()  # forgotten with the program
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_closed_pipe_ends_without_a_word(run):
    assert run(raising(BrokenPipeError())) == (1, "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/b\x1b[2J"), r"/a/b\u001b[2J: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("without a number"), "without a number"),
        (FileNotFoundError(2, "No such file or directory", b"/a\xff"), r"/a\udcff: No such file or directory"),
        (OSError(9, "Bad file descriptor", 7), "7: Bad file descriptor"),
    ],
)
def test_errors_of_the_system_end_with_one_line(run, error, message):
    advice = "check the path, its access rights and the space on its disk"
    assert run(raising(error)) == (2, f"error: {message}; {advice}\n")


def test_a_current_folder_that_was_deleted_is_named(run, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    code, errors = run(lambda: click.echo(Path("a").absolute()))
    assert code == 2
    assert errors == "error: cannot use the current folder: No such file or directory; change to another folder\n"


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_stops_no_command(monkeypatch, closed):
    used = []

    def use_streams():
        used.append(sys.stdin.read() if closed == "stdin" else "")
        click.echo("result")
        click.echo("progress", err=True)
        used.append("end")

    monkeypatch.setattr(sys, closed, None)
    monkeypatch.setattr(sys, "argv", ["program"])
    run_program(click.command()(use_streams), "program")
    assert used == ["", "end"]
    getattr(sys, closed).close()


def test_other_errors_keep_their_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_names_cannot_steer_the_terminal_or_add_lines(run):
    name = "a\x1b]0;title\x07\x1b[2J\nerror: all is lost\r\x9bA.png"
    assert run(raising(UserError(f"{name} is missing"))) == (
        2,
        "error: a\\u001b]0;title\\u0007\\u001b[2J error: all is lost \\u009bA.png is missing\n",
    )

    def printing():
        click.echo(f"one {name}")
        print(name)
        tqdm.write(name)
        warnings.warn(name, stacklevel=1)
        with tqdm(total=1, desc=name, mininterval=0) as bar:
            bar.update()
        raise UserError("end")

    code, errors = run(printing)
    assert code == 2
    assert "\x1b" not in errors
    assert "\x9b" not in errors
    assert "warning: a\\u001b]0;title" in errors


def test_output_is_escaped_and_json_stays_json(monkeypatch, capsys):
    value = {"caption": "\x9b2J red \u202e \x7f", "lines": "one\ntwo"}

    def printing():
        click.echo(json.dumps(value, ensure_ascii=False))
        print("one\n\ttwo\x1b[31m\rthree")
        click.echo(b"bytes \x1b")

    monkeypatch.setattr(sys, "argv", ["program"])
    run_program(click.command()(printing), "program")
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert json.loads(first) == value
    assert "\x9b" not in first
    assert rest == "one\n\ttwo\\u001b[31m\\u000dthree\nbytes \x1b\n"


def test_progress_bars_still_move_the_cursor(run):
    def drawing():
        with tqdm(total=2, position=1, mininterval=0) as bar:
            bar.update()
        raise UserError("end")

    _, errors = run(drawing)
    assert "\r" in errors
    assert "\x1b[A" in errors


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_a_full_memory_ends_with_one_line(run, error):
    message = "error: the memory is full; ask for less at a time, or close other programs\n"
    assert run(raising(error)) == (2, message)


def test_memory_that_torch_cannot_allocate_ends_with_one_line(run):
    code, errors = run(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert (code, errors.count("\n")) == (2, 1)
    assert "the memory is full" in errors


def test_a_worker_that_was_killed_ends_with_one_line(run):
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    code, errors = run(raising(error))
    assert (code, errors.count("\n")) == (2, 1)
    assert "got one that was ended from outside, perhaps for lack of memory; choose fewer workers" in errors


def test_other_errors_of_torch_are_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_program(click.command()(raising(RuntimeError("shapes do not fit"))), "program")
