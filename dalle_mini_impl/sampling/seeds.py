"""Random numbers of candidates: each has its own seed, so that its picture does not depend on the other candidates."""

import numpy as np
import torch
from torch import Tensor


def candidate_seed(seed: int, index: int) -> int:
    """Seed of candidate `index` (from 0) in a run with `seed`, in [0, 2**32); seeds of different runs are unrelated."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def uniform_rows(seed: int, length: int, rows: int) -> Tensor:
    """Uniform random numbers in [0, 1) of one candidate, (rows, length), drawn row by row on the CPU.

    The global random state is neither used nor changed.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.rand(length, generator=generator) for _ in range(rows)])
