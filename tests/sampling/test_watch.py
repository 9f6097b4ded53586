"""Requests that are followed while they are sampled, and given up."""

import dataclasses

import pytest
import torch
from helpers.models import SAMPLING, make_transformer

from dalle_mini_impl.sampling.generate import generate_many
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.sampling.requests import IdRequest, Prompt

PLAIN = dataclasses.replace(SAMPLING, guidance=1.0)


@pytest.fixture(scope="module")
def model():
    transformer, stream = make_transformer()
    return pack(transformer, "fp32", stream.image_range), stream


def requests(**watches):
    return [
        IdRequest(Prompt([5, 6]), range(3), SAMPLING, watch=watches.get("first")),
        IdRequest(Prompt([7]), range(3, 7), PLAIN, prune_to=1, watch=watches.get("second")),
        IdRequest(Prompt([]), range(7, 9), SAMPLING, watch=watches.get("third")),
    ]


def sampled(model, chunk=64, **watches):
    counts = []
    results = list(generate_many(*model, requests(**watches), chunk=chunk, progress=counts.append))
    assert sum(counts) == 9 * model[1].image_length  # whatever is given up, a progress bar comes to its end
    return results


def test_a_watch_sees_the_ids_so_far_of_its_own_candidates(model):
    seen = []
    plain = sampled(model)
    followed = sampled(model, third=lambda done, ids: seen.append(ids()) is None)
    length = model[1].image_length
    assert [ids.shape for ids in seen] == [(2, done) for done in range(1, length + 1)]
    assert torch.equal(model[1].to_grid(seen[-1]), followed[2].image_ids)
    for one, other in zip(plain, followed, strict=True):
        assert torch.equal(one.image_ids, other.image_ids)
        assert torch.equal(one.log_likelihood, other.log_likelihood)


@pytest.mark.parametrize("name", ["first", "second", "third"])
@pytest.mark.parametrize("cells", [1, 6, 15])
def test_what_is_given_up_is_empty_and_changes_nothing_else(model, name, cells):
    calls = []

    def watch(done, ids):
        calls.append(done)
        return done < cells

    plain, left = sampled(model), sampled(model, **{name: watch})
    assert calls == list(range(1, cells + 1))  # it is not asked again
    for number, (one, other) in enumerate(zip(plain, left, strict=True)):
        if ("first", "second", "third")[number] == name:
            assert len(other.indices) == len(other.image_ids) == len(other.log_likelihood) == 0
        else:
            assert torch.equal(one.indices, other.indices)
            assert torch.equal(one.image_ids, other.image_ids)
            assert torch.equal(one.log_likelihood, other.log_likelihood)


def test_sampling_ends_where_everything_is_given_up(model):
    calls = []
    results = sampled(model, **dict.fromkeys(("first", "second", "third"), lambda done, ids: calls.append(done)))
    assert [len(one.indices) for one in results] == [0, 0, 0]
    assert calls == [1, 1, 1]


def test_pieces_of_a_request_that_is_given_up_are_left_out(model):
    results = sampled(model, chunk=2, first=lambda done, ids: False)
    assert len(results[0].indices) == 0
    assert torch.equal(results[2].image_ids, sampled(model)[2].image_ids)
