"""What candidates are ordered by, as far as the transformer has the word; and their seeds."""

import numpy as np
from torch import Tensor

NULL_SHARE = 0.3
"""How much of the likelihood without caption is taken off. With all of it (the likelihood ratio) odd pictures win.
`dalle evaluate rerank` measures it; see `docs/log.md`."""


def likelihood_score(given: Tensor, null: Tensor) -> Tensor:
    """What `rank="likelihood"` orders by, from nats given the prompt and nats without it."""
    return given - NULL_SHARE * null


def score_so_far(likelihood: Tensor) -> Tensor:
    """What candidates are pruned by, from nats as in `Drawn.likelihood`; without guidance those given the prompt."""
    return likelihood[:, 0] if likelihood.shape[1] == 1 else likelihood_score(*likelihood.unbind(1))


def candidate_seed(seed: int, number: int) -> int:
    """Seed of candidate `number` (from 0) of a run's `seed`; unrelated for different seeds."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
