"""Several prompts in one batch."""

import pytest
import torch
from helpers.models import make_transformer
from helpers.sampling import (
    PROMPT,
    SETTINGS,
    alone,
    make_packable_text_model,
    make_patches,
    requests_of_every_kind,
)

from dalle_mini_impl.sampling.generate import generate_many
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.sampling.requests import IdRequest, Prompt
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(scope="module", params=["learned", "patches", "compiled", "compiled patches"])
def any_model(request):
    """Models of each kind, in PyTorch and in compiled code."""
    if request.param == "learned":
        return make_transformer("learned")
    if request.param == "patches":
        return make_patches(24)
    return pack_compiled(*(make_packable_text_model() if request.param == "compiled" else make_patches(64)))


def pack_compiled(transformer, stream):
    if load() is None:
        pytest.skip("there is no C compiler with OpenMP")
    return pack(transformer, "bf16", stream.image_range), stream


@pytest.mark.parametrize("chunk", [4, 64])
def test_prompts_of_a_batch_get_the_ids_that_each_gets_alone(any_model, chunk):
    requests = requests_of_every_kind(any_model[1])
    for request, result in zip(requests, generate_many(*any_model, requests, chunk=chunk), strict=True):
        expected = alone(any_model, request, chunk)
        assert torch.equal(result.indices, expected.indices)
        assert torch.equal(result.image_ids, expected.image_ids)
        torch.testing.assert_close(result.log_likelihood, expected.log_likelihood, rtol=1e-5, atol=1e-4)


def test_compiled_results_are_equal_to_the_last_bit():
    model = pack_compiled(*make_packable_text_model())
    requests = requests_of_every_kind(model[1])
    for request, result in zip(requests, generate_many(*model, requests), strict=True):
        assert torch.equal(result.log_likelihood, alone(model, request, 64).log_likelihood)


def test_neighbours_do_not_change_a_prompts_ids(any_model):
    first = [IdRequest(Prompt((number,)), [number], SETTINGS) for number in range(20)]
    together = [result.image_ids for result in generate_many(*any_model, first)]
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    again = list(generate_many(*any_model, [first[number] for number in shuffled], chunk=7))
    for place, number in enumerate(shuffled):
        assert torch.equal(again[place].image_ids, together[number])


def test_the_prompts_of_a_chunk_are_run_and_decoded_together():
    transformer, stream = make_transformer()
    shapes = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    requests = [IdRequest(Prompt((number,)), [number], SETTINGS) for number in range(9)]
    list(generate_many(transformer, stream, requests, chunk=6))
    hook.remove()
    # the captions and, once, the caption that all move away from; then two rows for each candidate
    assert shapes == [(7, 8), *[(12, 1)] * 14, (4, 8), *[(6, 1)] * 14]


def test_requests_are_read_as_they_are_needed():
    transformer, stream = make_transformer()
    read = []

    def requests():
        for number in range(100):
            read.append(number)
            yield IdRequest(Prompt((number,)), [number], SETTINGS)

    results = generate_many(transformer, stream, requests(), chunk=4)
    next(results)
    assert len(read) == 5  # the first that does not fit into the chunk shows that it is full


def test_progress_adds_up_to_every_id_of_every_prompt(any_model):
    calls: list[int] = []
    requests = requests_of_every_kind(any_model[1])
    list(generate_many(*any_model, requests, chunk=10, progress=calls.append))
    assert sum(calls) == any_model[1].image_length * sum(len(request.seeds) for request in requests)


def test_a_mistake_in_a_later_request_is_named(any_model):
    requests = [IdRequest(PROMPT, [1], SETTINGS), IdRequest(PROMPT, [], SETTINGS)]
    with pytest.raises(UserError, match="expected at least one seed, got none"):
        list(generate_many(*any_model, requests))
