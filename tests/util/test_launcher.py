"""A mistake under `accelerate launch` ends it with one line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.training import DEADLINE, environment, launch

from dalle_mini_impl.util import launcher
from dalle_mini_impl.util.command_line import leave_process_group
from dalle_mini_impl.util.launcher import find_launcher, is_launcher

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

PROGRAM = """
import os, time
from pathlib import Path
import click
from dalle_mini_impl.util import launcher
from dalle_mini_impl.util.command_line import run_program
from dalle_mini_impl.util.errors import UserError

@click.command()
@click.argument("folder", type=Path)
@click.argument("failing", nargs=-1)
def program(folder, failing):
    rank = os.environ.get("RANK", "0")
    if failing == ("1",):  # nothing to wait for: the main process makes no mistake
        launcher.MAIN_PROCESS_SECONDS = 1.0
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    count = int(os.environ.get("WORLD_SIZE", 1))
    while len(list(folder.glob("*.pid"))) < count:
        time.sleep(0.01)
    if rank in failing:
        raise UserError("got this, expected that")
    time.sleep(600)

run_program(program, "program")
"""

PARENT = """
import subprocess, sys
done = subprocess.run([sys.executable, *sys.argv[1:]])
print("the child ended with", done.returncode)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def is_running(pid):
    """Whether a process still does something: it exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_all_ended(folder, count):
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert len(pids) == count
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- which process is a launcher


@pytest.mark.parametrize(
    "command",
    [
        "python /venv/bin/accelerate launch -m dalle_mini_impl",
        "/usr/bin/python3.12 /venv/bin/accelerate launch",
        "python -m accelerate.commands.launch --num_processes 2 -m dalle_mini_impl",
        "python -m accelerate.commands.accelerate_cli launch script.py",
        "python -u /venv/bin/accelerate-launch script.py",
        "python /site-packages/accelerate/commands/launch.py script.py",
    ],
)
def test_launchers_are_known(command):
    assert is_launcher(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "",
        "python",
        "bash -c accelerate launch",
        "accelerate launch",
        "python -m dalle_mini_impl train accelerate launch",
        "python /venv/bin/accelerate config",
        "python /venv/bin/dalle compare accelerate launch",
        "python -m pytest accelerate launch",
        "make accelerate launch",
    ],
)
def test_other_parents_are_left_alone(command):
    assert not is_launcher(command.split())


def test_the_parent_of_these_tests_is_no_launcher():
    assert find_launcher() is None


def test_without_proc_no_parent_is_taken_for_a_launcher(monkeypatch):
    monkeypatch.setattr(launcher, "is_launcher", lambda command: True)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_launcher() is None


# --- launches


@LINUX
def test_one_process_ends_with_one_line(program, tmp_path):
    code, output = launch("gpu", 1, str(program), str(tmp_path), "0")
    assert output == "error: got this, expected that\n"
    assert code != 0
    assert_all_ended(tmp_path, 1)


@LINUX
@pytest.mark.parametrize("failing", [("0", "1"), ("0",), ("1",)], ids=["both", "main", "other"])
def test_of_two_processes_one_prints_and_both_end(program, tmp_path, failing):
    code, output = launch("cpu-2", 2, str(program), str(tmp_path), *failing)
    assert output == "error: got this, expected that\n"
    assert code != 0
    assert_all_ended(tmp_path, 2)


@LINUX
def test_a_launcher_further_up_is_left_alone(program, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    code, output = launch("gpu", 1, str(tmp_path / "parent.py"), str(program), str(tmp_path), "0")
    assert code == 0
    assert output == "error: got this, expected that\nthe child ended with 2\n"


# --- the process group


def test_the_process_group_is_destroyed():
    code = (
        "import torch\n"
        "from torch import distributed\n"
        "from dalle_mini_impl.util.command_line import leave_process_group\n"
        "distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)\n"
        "leave_process_group()\n"
        "assert not distributed.is_initialized()\n"
        "leave_process_group()\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=DEADLINE)


def test_without_a_process_group_nothing_happens():
    leave_process_group()


@LINUX
@pytest.mark.parametrize(
    ("several", "parent", "words", "done"),
    [
        (True, 4321, ["python", "-m", "accelerate.commands.launch"], "end with 4321"),
        (True, 4322, [], "end with 4322"),  # it is ending, but still the parent
        (True, 1, ["/sbin/init"], "exit 1"),  # it has ended
        (True, 1, ["python", "-m", "torch.distributed.run"], ""),  # the first process of a container
        (True, 4323, ["bash"], ""),
        (False, 1, ["/sbin/init"], ""),
    ],
)
def test_a_process_ends_with_its_launcher_even_if_that_ends_first(monkeypatch, several, parent, words, done):
    calls = []
    launcher.runs_launcher.cache_clear()
    monkeypatch.setattr(launcher, "is_one_of_several", lambda: several)
    monkeypatch.setattr(launcher.os, "getppid", lambda: parent)
    monkeypatch.setattr(launcher, "command_line", lambda process: words)
    monkeypatch.setattr(launcher, "end_with_parent", lambda process: calls.append(f"end with {process}"))
    monkeypatch.setattr(launcher.os, "_exit", lambda code: calls.append(f"exit {code}"))
    launcher.end_with_launcher()
    launcher.runs_launcher.cache_clear()
    assert calls == [done] * bool(done)
