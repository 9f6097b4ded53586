"""The large set of `large_set.py`, small: the same commands, killed and continued."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import DEADLINE, environment

SCRIPT = Path(__file__).parent / "large_set.py"


@pytest.mark.slow
def test_a_set_in_tars_is_inspected_encoded_trained_and_drawn(tmp_path, tries, report):
    pictures, prompts = tries(20_000, 4000), tries(2000, 60)
    options = ["--pictures", str(pictures), "--prompts", str(prompts), "--out", str(tmp_path / "set")]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True, text=True, timeout=DEADLINE, env=environment(), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "killed and continued: same ids, losses, weights and pictures" in result.stdout
    peaks = [int(peak) for peak in re.findall(r"(\d+) MiB", result.stdout)][1:]
    report("a set in tars, inspected to drawn, three commands killed", f"{pictures} pictures, at most {max(peaks)} MiB")
