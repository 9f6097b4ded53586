"""The prepared script, on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import DEADLINE

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
