"""How the threads of one process wait for each other. Imports no torch."""

import os
import sys

SPIN_COUNT = "3000"
"""Some 50 microseconds; GNU's OpenMP takes 300,000 by default, several milliseconds. Its threads look this often for
the others before they leave their core to another program. Waits within a step of training are mostly shorter, so alone
it is as fast; beside a busy program, threads that spin for long keep the one that they wait for from running."""


def limit_spinning() -> None:
    """Bound how long threads of OpenMP spin, for this process and those that it starts.

    It sets `GOMP_SPINCOUNT`, which GNU's OpenMP (that of PyTorch on Linux) reads while it is loaded: so nothing is done
    once PyTorch is loaded, nor if the user has said how threads wait.
    """
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
