"""Steps of fixed shape, as they are recorded on a GPU, against steps whose cache grows. Nothing is recorded here."""

import pytest
import torch
from helpers.models import make_transformer
from helpers.sampling import PROMPT, SETTINGS, alone, make_patches, requests_of_every_kind, sample

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.sampling import graph_decoder
from dalle_mini_impl.sampling.generate import generate, generate_cells, generate_many
from dalle_mini_impl.sampling.graph_decoder import GraphDecoder, can_record, free_for_batches
from dalle_mini_impl.sampling.requests import IdRequest, Prompt
from dalle_mini_impl.util.errors import UserError

MODELS = {
    "rope": {},
    "learned": {"position": "learned"},
    "absolute": {"position": "absolute"},
    "masks": {"attention_masks": ("row", "column"), "last_attention_mask": "conv", "mask_kernel": 3},
    "foreign": {
        "block": BlockConfig(norm="layer", mlp="geglu", bias=True, sandwich=True, reversible=True),
        "divide_by_max": True,
        "last_norms": 2,
    },
}


@pytest.fixture(params=MODELS)
def both(request, monkeypatch):
    """A model, and the same one with steps of fixed shape that read 5 more positions whenever they need them."""
    monkeypatch.setattr(graph_decoder, "SPAN", 5)
    transformer, stream = make_transformer(**MODELS[request.param])
    return (transformer, stream), (GraphDecoder(transformer, records=False), stream)


@pytest.mark.parametrize("chunk", [4, 64])
def test_ids_are_those_of_the_transformer(both, chunk):
    plain, static = both
    requests = requests_of_every_kind(plain[1])
    for request, result in zip(requests, generate_many(*static, requests, chunk=chunk), strict=True):
        expected = alone(plain, request, chunk)
        assert torch.equal(result.indices, expected.indices)
        assert torch.equal(result.image_ids, expected.image_ids)
        torch.testing.assert_close(result.log_likelihood, expected.log_likelihood, rtol=1e-5, atol=1e-4)


def test_tensors_of_a_batch_are_used_again(both):
    plain, (decoder, stream) = both
    for seed in (1, 2, 3):
        prompt = Prompt((seed, 300))
        results = sample((decoder, stream), range(seed, seed + 4), prompt)
        assert torch.equal(results.image_ids, sample(plain, range(seed, seed + 4), prompt).image_ids)
        assert len(decoder._unused) == 1
    other = SamplingConfig(temperature=0.0, guidance=2.5)
    assert torch.equal(
        sample((decoder, stream), [1], PROMPT, other).image_ids, sample(plain, [1], PROMPT, other).image_ids
    )
    assert len(decoder._unused) == 2


def test_drawing_in_the_middle_of_another_drawing_disturbs_neither(both):
    plain, static = both
    cells = generate_cells(*static, IdRequest(PROMPT, [3, 4], SETTINGS))
    for _ in range(6):
        next(cells)
    between = generate(*static, Prompt((9,)), [5, 6], SETTINGS)
    *_, last = cells
    assert torch.equal(between.image_ids, generate(*plain, Prompt((9,)), [5, 6], SETTINGS).image_ids)
    assert torch.equal(last, sample(plain, [3, 4]).image_ids.flatten(1))


def test_few_sizes_of_batches_are_kept(both, monkeypatch):
    _, (decoder, stream) = both
    for count in range(1, 6):
        sample((decoder, stream), range(count))
    assert [kind[1] for kind in decoder._unused] == [3, 4, 5]
    # Two rows for each candidate, in whole spans of the stream's 23 positions; keys and values of 3 layers of 24.
    assert decoder.kept_bytes == 2 * (3 + 4 + 5) * 25 * 2 * 3 * 24 * 4
    monkeypatch.setattr(graph_decoder, "free_memory", lambda device: 1000)
    assert free_for_batches(decoder) == 1000 + decoder.kept_bytes
    assert free_for_batches(decoder.transformer) == 1000


def test_a_cache_that_does_not_fit_is_refused_after_others_are_dropped(both, monkeypatch):
    _, (decoder, stream) = both
    sample((decoder, stream), [1])
    monkeypatch.setattr(graph_decoder, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"expected the keys and values of 7 candidates to fit .* smaller chunk"):
        sample((decoder, stream), range(7))
    assert not decoder._unused


def test_patches_and_shifted_tokens_are_left_to_the_transformer():
    shifted, _ = make_transformer(block=BlockConfig(token_shift=True))
    assert not can_record(shifted)
    assert not can_record(make_patches(24)[0])
    assert can_record(make_transformer()[0])
