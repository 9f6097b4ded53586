"""Seeds of candidates."""

import numpy as np


def candidate_seed(seed: int, number: int) -> int:
    """Seed of candidate `number` (from 0) of a run's `seed`; unrelated for different seeds."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
