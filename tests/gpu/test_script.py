"""The prepared script, as far as it can be tried without a GPU."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import DEADLINE

from dalle_mini_impl.cli.bench import bench

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_without_a_gpu_the_script_ends_with_one_line(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": sys.executable},
        text=True,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: expected a GPU that PyTorch can use, got none; nothing was measured\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("failing", "message"), [("none", ""), ("pytest", " tests"), ("bench", " R 300m 300m-train parts")]
)
def test_what_fails_is_named_in_the_end(tmp_path, failing, message):
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\n[ "$2" != {failing} ] && [ "$3" != {failing} ]\n')
    stand_in.chmod(0o755)
    out = tmp_path / "out"
    done = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh"), str(out)],
        env={**os.environ, "PYTHON": str(stand_in)},
        text=True,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == bool(message)
    assert done.stderr == (f"error: these failed, the others are in {out}:{message}\n" if message else "")


def test_the_commands_of_the_script_parse():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text().replace("$PEER", "none")
    commands = [shlex.split(line)[2:] for line in script.splitlines() if line.startswith("bench ")]
    assert len(commands) == 4
    for command in commands:
        bench.make_context("bench", ["--device", "cuda", "--json", "x.json", *command])
