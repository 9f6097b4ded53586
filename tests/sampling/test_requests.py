"""How many candidates are decoded at a time."""

from types import SimpleNamespace

import pytest
import torch
from helpers.models import make_transformer
from helpers.sampling import PROMPT, SETTINGS

from dalle_mini_impl.sampling import graph_decoder
from dalle_mini_impl.sampling.requests import CHUNK, LARGEST_CHUNK, IdRequest, choose_chunk, divide


@pytest.mark.parametrize(("fitting", "expected"), [(0, 1), (5, 4), (300, 256), (10**6, LARGEST_CHUNK)])
def test_on_a_gpu_as_many_candidates_as_half_the_memory_holds(monkeypatch, fitting, expected):
    transformer, stream = make_transformer()
    cache = transformer.new_cache(2, stream.length)
    each = 2 * cache.keys.numel() * 4 + 40 * 61  # keys and values of two rows, logits
    monkeypatch.setattr(graph_decoder, "free_memory", lambda device: 2 * fitting * each)
    decoder = SimpleNamespace(device=torch.device("cuda"), new_cache=transformer.new_cache)
    assert choose_chunk(decoder, stream) == expected
    assert choose_chunk(transformer, stream) == CHUNK


def test_pruned_requests_have_pieces_of_their_own_size():
    _, stream = make_transformer()
    asked = [IdRequest(PROMPT, range(9), SETTINGS), IdRequest(PROMPT, range(9), SETTINGS, prune_to=1)]
    assert [len(piece.seeds) for piece in divide(stream, asked, 8, 4)] == [8, 1, 4, 4, 1]
