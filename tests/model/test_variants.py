"""Transformers of every kind: all causal, the same with a cache, with the same samples as a slow reference."""

import pytest
import torch
from helpers import reference
from helpers.models import TEXT_LENGTH, make_transformer

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.masks import KINDS
from dalle_mini_impl.sampling.generate import Prompt, generate

GPT2_BLOCK = BlockConfig(norm="layer", mlp="gelu", bias=True, qk_norm=False)
DALLE_PYTORCH_BLOCK = BlockConfig(
    norm="layer", mlp="geglu", bias=True, qk_norm=False, token_shift=True, rotate_values=True
)
REVERSIBLE_BLOCK = BlockConfig(norm="layer", mlp="gelu-tanh", bias=True, qk_norm=False, sandwich=True, reversible=True)
VARIANTS = {
    **{kind: {"attention_masks": (kind,), "mask_kernel": 3} for kind in KINDS if kind != "full"},
    "DALL-E 1": {"position": "learned", "block": GPT2_BLOCK, "attention_masks": ("row", "column"),
                 "last_attention_mask": "conv", "mask_kernel": 3},
    "tied head": {"tied_head": True},
    "no BOS": {"position": "absolute", "block": GPT2_BLOCK, "bos_id": -1},
    "mask origin": {"attention_masks": ("row", "column", "conv_torus"), "mask_kernel": 3, "mask_origin": "target",
               "last_norms": 2},
    "token shift": {"block": DALLE_PYTORCH_BLOCK, "head_dim": 8, "attention_masks": ("full", "axial_row", "axial_col")},
    "reversible": {"block": REVERSIBLE_BLOCK, "position": "learned", "divide_by_max": True},
    "all parts": {"block": BlockConfig(token_shift=True, sandwich=True, reversible=True, hidden=31),
            "attention_masks": ("conv_like",), "mask_kernel": 2, "bos_id": -1},
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def model(request):
    transformer, stream = make_transformer(**VARIANTS[request.param])
    return transformer.double(), stream


def random_ids(model, seed=0):
    transformer, stream = model
    return torch.randint(transformer.vocab_size, (2, stream.length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("t", [0, 3, TEXT_LENGTH, TEXT_LENGTH + 1, 11, 17])
def test_no_position_attends_to_later_ones(model, t, grad):
    ids = random_ids(model)
    changed = ids.clone()
    changed[:, t + 1] = (ids[:, t + 1] + 1) % model[0].vocab_size
    with torch.set_grad_enabled(grad):
        before, after = model[0](ids), model[0](changed)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    assert bool((before[:, t + 1] != after[:, t + 1]).any())


@pytest.mark.parametrize(
    "sizes",
    [[1] * 22, [1, 2, 3, 5, 7, 4], [8] + [1] * 14, [11, 1, 1, 9]],
    ids=["single", "ragged", "prompt", "leading"],
)
def test_cached_equals_uncached_at_every_position(model, sizes):
    ids, cache, pieces = random_ids(model)[:, :22], model[0].new_cache(2), []
    with torch.no_grad():
        for size in sizes:
            pieces.append(model[0](ids[:, cache.length : cache.length + size], cache))
        torch.testing.assert_close(torch.cat(pieces, 1), model[0](ids), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_recomputing_gives_the_same_gradients(name):
    gradients = []
    for recompute in (False, True):
        transformer, stream = make_transformer(**VARIANTS[name], recompute=recompute)
        transformer.double()(random_ids((transformer, stream))).square().sum().backward()
        gradients.append([value.grad.clone() for value in transformer.parameters() if value.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", VARIANTS)
def test_sampled_ids_equal_the_slow_reference(name, guidance):
    transformer, stream = make_transformer(**VARIANTS[name])
    settings, prompt, seeds = SamplingConfig(guidance=guidance, top_k=31), Prompt((5, 300, 17)), [3, 11]
    sampled = generate(transformer, stream, prompt, seeds, settings).image_ids
    for ids, seed in zip(sampled, seeds, strict=True):
        assert torch.equal(ids, reference.generate(transformer, stream, ([5, 300, 17], []), seed, settings))
