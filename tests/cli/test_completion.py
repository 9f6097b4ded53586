"""`dalle completion`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import dalle_mini_impl
from dalle_mini_impl.cli import COMMANDS, dalle


def script(shell):
    result = CliRunner().invoke(dalle, ["completion", shell], prog_name="dalle")
    assert result.exit_code == 0
    return result.stdout


def complete(words, index):
    """What the program answers to a shell."""
    command = [sys.executable, "-m", "dalle_mini_impl"]
    asked = {"_DALLE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_asks_the_program(shell):
    assert f"_DALLE_COMPLETE={shell}_complete" in script(shell)


def test_commands_options_choices_and_files_are_completed():
    assert complete("dalle ", 1) == [f"plain,{name}" for name in COMMANDS]
    assert complete("dalle train sco", 2) == ["plain,scorer"]
    assert sorted(complete("dalle sample --pre", 2)) == ["plain,--precision", "plain,--preview"]
    assert complete("dalle sample --rank cl", 3) == ["plain,clip"]
    assert complete("dalle sample --out pict", 3) == ["file,pict"]
    assert complete("dalle sample --save-dir pict", 3) == ["dir,pict"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_with_the_script(tmp_path):
    program = tmp_path / "dalle"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dalle_mini_impl "$@"\n')
    program.chmod(0o755)
    lines = (
        'eval "$(dalle completion bash)"\n'
        "complete -p dalle\n"
        "COMP_WORDS=(dalle sample --transp); COMP_CWORD=2\n"
        '_dalle_completion dalle --transp sample\necho "${COMPREPLY[@]}"\n'
    )
    root = Path(dalle_mini_impl.__file__).parent.parent
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    done = subprocess.run(
        ["bash", "-c", lines], env={**os.environ, **paths}, capture_output=True, text=True, check=True
    )
    declared, completed = done.stdout.splitlines()
    assert declared.endswith("-F _dalle_completion dalle")
    assert completed == "--transparent"
