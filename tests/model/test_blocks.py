"""The parts of a plain block, each against its formula."""

import math

import pytest
import torch
from helpers.models import GRID, TEXT_LENGTH, make_transformer, randomise

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.model.blocks import MLP, Block, LayerNorm
from dalle_mini_impl.model.masks import AttentionMask, mask_matrix
from dalle_mini_impl.util.errors import UserError


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def erf_gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("swiglu", lambda x: x[..., :11] / (1 + torch.exp(-x[..., :11])) * x[..., 11:]),
        ("geglu", lambda x: erf_gelu(x[..., :11]) * x[..., 11:]),
        ("gelu", erf_gelu),
        ("gelu-tanh", tanh_gelu),
    ],
)
def test_feed_forward_layer_equals_its_formula(kind, formula):
    layer = randomise(MLP(7, kind, 11, bias=True), 3).double()
    x = noise(5, 7)
    inside = formula(x @ layer.up.weight.T + layer.up.bias)
    torch.testing.assert_close(layer(x), inside @ layer.down.weight.T + layer.down.bias)


def test_default_width_of_the_feed_forward_layer():
    assert [MLP(96, kind).down.in_features for kind in ("swiglu", "geglu", "gelu")] == [256, 384, 384]


def test_layer_norm_equals_its_formula():
    norm, x = randomise(LayerNorm(7), 3).double(), noise(5, 7)
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)
    assert LayerNorm(7)(torch.ones(2, 7, dtype=torch.bfloat16).requires_grad_()).dtype == torch.bfloat16


@torch.no_grad()
def test_attention_without_qk_norm_equals_its_formula():
    mask = AttentionMask(mask_matrix("row", 2, (2, 3)))
    layer = randomise(Block(12, 3, 5, mask, norm="layer", bias=True, qk_norm=False), 5).double().attention
    x = noise(8, 12)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).view(8, 3, 3, 5).unbind(1)
    heads = torch.zeros(8, 3, 5, dtype=torch.float64)
    for t in range(8):
        attended = [s for s in range(t + 1) if s < 2 or t - s <= 3]
        for head in range(3):
            weights = torch.stack([q[t, head] @ k[s, head] * 5**-0.5 for s in attended]).softmax(0)
            heads[t, head] = sum(weight * v[s, head] for weight, s in zip(weights, attended, strict=True))
    expected = heads.flatten(1) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x[None], None)[0], expected)


def test_a_block_adds_its_layers_to_the_residual_stream():
    block, x = randomise(Block(8, 2, norm="layer", mlp="gelu", bias=True), 5).double(), noise(1, 6, 8)
    middle = x + block.attention(block.attention_norm(x), None)
    torch.testing.assert_close(block(x, None), middle + block.mlp(block.mlp_norm(middle)))


def test_absolute_positions_add_one_vector_each():
    transformer, stream = make_transformer("absolute")
    block_inputs = []
    transformer.blocks[0].register_forward_pre_hook(lambda module, args: block_inputs.append(args[0]))
    transformer(torch.full((1, stream.length), 3))
    assert transformer.positions[0].num_embeddings == stream.length == 1 + TEXT_LENGTH + GRID[0] * GRID[1]
    torch.testing.assert_close(block_inputs[0][0], transformer.embed.weight[3] + transformer.positions[0].weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": BlockConfig(norm="batch")}, "expected norm rms or layer, got 'batch'"),
        ({"block": BlockConfig(mlp="relu")}, "expected mlp swiglu, geglu, gelu, gelu-tanh, got 'relu'"),
    ],
)
def test_unknown_parts_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_transformer(**changes)
