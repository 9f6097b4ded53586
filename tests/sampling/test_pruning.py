import pytest
import torch
from helpers.sampling import PROMPT, random_image_ids, sample

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.sampling.generate import candidates_to_keep
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood

SEEDS = [3, 5, 8, 13, 21, 34, 55]


def likeliest(nats_so_far, halvings):
    """Candidates left after keeping the likeliest `count` at each (number of ids, count)."""
    left = list(range(len(nats_so_far)))
    for ids, count in halvings:
        left = sorted(sorted(left, key=lambda index: -float(nats_so_far[index, ids - 1]))[:count])
    return left


@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_pruning_drops_the_less_likely_half_twice_and_does_not_change_the_others(model, guidance):
    settings = SamplingConfig(temperature=0.9, guidance=guidance)
    everything = sample(model, SEEDS, settings=settings)
    nats_so_far = log_likelihood(*model, PROMPT.text_ids, everything.image_ids).cumsum(1)
    left = likeliest(nats_so_far, ((3, 4), (7, 2)))  # after 3/16 and 7/16 of 15 ids
    pruned = sample(model, SEEDS, settings=settings, prune_to=1)
    assert pruned.indices.tolist() == left != [0, 1]
    assert torch.equal(pruned.image_ids, everything.image_ids[left])
    torch.testing.assert_close(pruned.log_likelihood, everything.log_likelihood[left], rtol=1e-5, atol=1e-4)


def test_pruning_with_known_ids_counts_sampled_ids_only(model):
    redraw = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 3 + [True] * 2])
    known = KnownIds(random_image_ids(), redraw)
    image_ids = sample(model, SEEDS, known=known).image_ids
    nats_so_far = log_likelihood(*model, PROMPT.text_ids, image_ids).cumsum(1)[:, 8:]
    left = likeliest(nats_so_far, ((1, 4), (3, 2)))  # after 3/16 and 7/16 of the 7 ids that follow the first 8
    calls: list[int] = []
    pruned = sample(model, SEEDS, prune_to=1, known=known, progress=calls.append)
    assert pruned.indices.tolist() == left != [0, 1]
    assert torch.equal(pruned.image_ids, image_ids[left])
    assert sum(calls) == 7 * 15


def test_every_chunk_is_pruned_by_itself(model):
    pruned = sample(model, list(range(10)), chunk=5, prune_to=1)
    parts = [sample(model, list(range(start, start + 5)), prune_to=1) for start in (0, 5)]
    assert pruned.indices.tolist() == [*parts[0].indices.tolist(), *(parts[1].indices + 5).tolist()]
    assert torch.equal(pruned.image_ids, torch.cat([part.image_ids for part in parts]))
    assert len(pruned.indices) == 4  # of each five first 3, then 2


@pytest.mark.parametrize(("prune_to", "left"), [(1, 2), (3, 3), (5, 5), (7, 7), (9, 7)])
def test_pruning_leaves_at_least_prune_to_candidates_and_progress_counts_the_dropped_ids(model, prune_to, left):
    calls: list[int] = []
    pruned = sample(model, list(range(7)), progress=calls.append, prune_to=prune_to)
    assert len(pruned.indices) == left
    assert sum(calls) == 7 * 15


def test_of_equally_likely_candidates_the_first_are_kept():
    assert candidates_to_keep(torch.tensor([-3.0, -2, -2, -3, -2]), 1, 7, 16).tolist() == [1, 2, 4]
    assert candidates_to_keep(torch.tensor([-3.0, -2, -2, -3, -2]), 4, 3, 16).tolist() == [0, 1, 2, 4]
    for prune_to, sampled in ((5, 7), (None, 7), (1, 8)):
        assert candidates_to_keep(torch.zeros(5), prune_to, sampled, 16) is None
