"""Blocks of every kind: each against its formula, and all of them causal and the same with a cache."""

import math

import pytest
import torch
from helpers import reference
from helpers.models import GRID, TEXT_LENGTH, make_transformer, randomise

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.blocks import MLP, Block, LayerNorm, shifted
from dalle_mini_impl.model.masks import KINDS, AttentionMask, mask_matrix
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.util.errors import UserError

CLASSIC = BlockConfig(norm="layer", mlp="gelu", bias=True, qk_norm=False)
SHIFTED = BlockConfig(norm="layer", mlp="geglu", bias=True, qk_norm=False, token_shift=True, rotate_values=True)
TWO_STREAMS = BlockConfig(norm="layer", mlp="gelu-tanh", bias=True, qk_norm=False, sandwich=True, reversible=True)
VARIANTS = {
    **{kind: {"attention_masks": (kind,), "mask_kernel": 3} for kind in KINDS if kind != "full"},
    "DALL-E 1": {"position": "learned", "block": CLASSIC, "attention_masks": ("row", "column"),
                 "last_attention_mask": "conv", "mask_kernel": 3},
    "no BOS": {"position": "absolute", "block": CLASSIC, "bos_id": -1},
    "target": {"attention_masks": ("row", "column", "conv_torus"), "mask_kernel": 3, "mask_origin": "target",
               "last_norms": 2},
    "shifted": {"block": SHIFTED, "head_dim": 8, "attention_masks": ("full", "axial_row", "axial_col")},
    "two streams": {"block": TWO_STREAMS, "position": "learned", "divide_by_max": True},
    "all": {"block": BlockConfig(token_shift=True, sandwich=True, reversible=True, hidden=31),
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
def test_no_position_sees_the_future(model, t, grad):
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


def test_recomputing_gives_the_same_gradients(model):
    gradients = []
    for recompute in (False, True):
        model[0].recompute = recompute
        model[0].zero_grad()
        model[0](random_ids(model)).square().sum().backward()
        gradients.append([value.grad.clone() for value in model[0].parameters() if value.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", VARIANTS)
def test_pictures_are_those_of_the_reference(name, guidance):
    transformer, stream = make_transformer(**VARIANTS[name])
    settings, prompt, seeds = SamplingConfig(guidance=guidance, top_k=31), Prompt((5, 300, 17)), [3, 11]
    drawn = generate(transformer, stream, prompt, seeds, settings).image_ids
    for ids, seed in zip(drawn, seeds, strict=True):
        assert torch.equal(ids, reference.generate(transformer, stream, ([5, 300, 17], []), seed, settings))


# --- the parts, each by its formula


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
def test_a_feed_forward_layer_is_its_formula(kind, formula):
    layer = randomise(MLP(7, kind, 11, bias=True), 3).double()
    x = noise(5, 7)
    inside = formula(x @ layer.up.weight.T + layer.up.bias)
    torch.testing.assert_close(layer(x), inside @ layer.down.weight.T + layer.down.bias)


def test_how_wide_a_feed_forward_layer_is_unless_told():
    assert [MLP(96, kind).down.in_features for kind in ("swiglu", "geglu", "gelu")] == [256, 384, 384]


def test_layer_norm_is_its_formula():
    norm, x = randomise(LayerNorm(7), 3).double(), noise(5, 7)
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)
    assert LayerNorm(7)(torch.ones(2, 7, dtype=torch.bfloat16).requires_grad_()).dtype == torch.bfloat16


SOURCES = torch.tensor([[-1, 0, 1, -1, 2, 3], [-1, 0, 1, 2, -1, 4]])


def test_shifted_channels_are_those_of_the_neighbours():
    z = noise(2, 6, 8)
    result = shifted(z, SOURCES, None, 0)
    for place in range(6):
        above, left = (z[:, source] if source >= 0 else torch.zeros(2, 8) for source in SOURCES[:, place])
        expected = torch.cat([above[:, :2], left[:, 2:4], z[:, place, 4:]], 1)
        assert torch.equal(result[:, place], expected)


def test_neighbours_are_above_and_on_the_left():
    stream = make_transformer()[1]
    above, left = stream.neighbours().tolist()
    assert above[:8] == left[:8] == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert above[8:] == [-1] * 5 + list(range(8, 18))
    assert left[8:] == [-1, 8, 9, 10, 11, -1, 13, 14, 15, 16, -1, 18, 19, 20, 21]


@torch.no_grad()
def test_attention_without_norms_is_its_formula():
    config = BlockConfig(norm="layer", bias=True, qk_norm=False)
    layer = randomise(Block(12, 3, config, 5, AttentionMask(mask_matrix("row", 2, (2, 3)))), 5).double().attention
    x = noise(8, 12)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).view(8, 3, 3, 5).unbind(1)
    heads = torch.zeros(8, 3, 5, dtype=torch.float64)
    for t in range(8):
        seen = [s for s in range(t + 1) if s < 2 or t - s <= 3]
        for head in range(3):
            shares = torch.stack([q[t, head] @ k[s, head] * 5**-0.5 for s in seen]).softmax(0)
            heads[t, head] = sum(share * v[s, head] for share, s in zip(shares, seen, strict=True))
    expected = heads.flatten(1) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x[None], None)[0], expected)


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("sandwich", [False, True])
def test_a_block_adds_its_layers(sandwich, reversible):
    config = BlockConfig(norm="layer", mlp="gelu", bias=True, sandwich=sandwich, reversible=reversible)
    block, x = randomise(Block(8, 2, config, 4), 5).double(), noise(2, 1, 6, 8)
    posts = (block.attention_post, block.mlp_post) if sandwich else (torch.nn.Identity(), torch.nn.Identity())

    def attend(x):
        return posts[0](block.attention(block.attention_norm(x), None))

    def feed(x):
        return posts[1](block.mlp(block.mlp_norm(x)))

    if reversible:
        first = x[0] + attend(x[1])
        torch.testing.assert_close(block(x, None, None, 0), torch.stack([first, x[1] + feed(first)]))
    else:
        middle = x[0] + attend(x[0])
        torch.testing.assert_close(block(x[0], None, None, 0), middle + feed(middle))


def test_what_happens_behind_the_last_block():
    transformer, _ = make_transformer(block=TWO_STREAMS, position="absolute", divide_by_max=True, last_norms=2)
    left = []
    transformer.blocks[-1].register_forward_hook(lambda module, args, output: left.append(output))
    with torch.no_grad():
        hidden = transformer(torch.tensor([[1, 2, 3]]))
        x = left[0].mean(0)
        x = x / x.max(-1, keepdim=True).values
        torch.testing.assert_close(hidden, transformer.norm[1](transformer.norm[0](x)))
        scores = hidden @ transformer.head.weight.T + transformer.head.bias
        torch.testing.assert_close(transformer.logits(hidden, (5, 19)), scores[..., 5:19])


def test_absolute_positions_are_one_vector_each():
    transformer, stream = make_transformer("absolute")
    entered = []
    transformer.blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    transformer(torch.full((1, stream.length), 3))
    assert transformer.positions[0].num_embeddings == stream.length == 1 + TEXT_LENGTH + GRID[0] * GRID[1]
    torch.testing.assert_close(entered[0][0], transformer.embed.weight[3] + transformer.positions[0].weight)


def test_a_fresh_classic_model_predicts_every_id_alike():
    coordinates = torch.tensor([[0, 0], [1, 0], [1, 1]])
    model = Transformer(19, coordinates, n_layer=2, n_head=3, n_embd=12, position="learned", block=CLASSIC)
    assert not model.logits(model(torch.tensor([[1, 2, 18]]))).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": BlockConfig(norm="batch")}, "unknown norm 'batch'; expected rms or layer"),
        ({"block": BlockConfig(mlp="relu")}, "unknown mlp 'relu'; expected one of swiglu, geglu, gelu, gelu-tanh"),
        (
            {"block": BlockConfig(token_shift=True), "n_embd": 6, "n_head": 3, "position": "learned"},
            "n_embd 6 was given",
        ),
        ({"last_norms": 0}, "last_norms 0 was given, expected 1 or more"),
        ({"head_dim": 6}, "a multiple of 4"),
    ],
)
def test_what_makes_no_model_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Transformer(
            **{
                "vocab_size": 19,
                "coordinates": torch.zeros(3, 2, dtype=torch.int64),
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 8,
                **changes,
            }
        )
