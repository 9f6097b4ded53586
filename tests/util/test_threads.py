import os
import subprocess
import sys

import pytest

SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("before", "chosen", "expected"),
    [
        ("", {}, "3000"),
        ("import torch; ", {}, "None"),  # too late
        ("", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("", {"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_spin_briefly_unless_the_user_has_chosen(before, chosen, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", f"{before}import dalle_mini_impl; {SHOW}"]
    result = subprocess.run(command, env={**environment, **chosen}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected
