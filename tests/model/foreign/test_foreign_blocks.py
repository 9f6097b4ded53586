"""Blocks and transformers of imported models: each part against its formula, and the cache of token shift."""

import pytest
import torch
from helpers.models import make_transformer, randomise
from torch import nn

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.model.foreign.blocks import (
    ForeignBlock,
    RotatedValuesAttention,
    ShiftCache,
    shift_sources,
    shift_tokens,
)
from dalle_mini_impl.model.foreign.transformer import ForeignTransformer
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.util.errors import UserError

REVERSIBLE_BLOCK = BlockConfig(norm="layer", mlp="gelu-tanh", bias=True, qk_norm=False, sandwich=True, reversible=True)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- token shift


SOURCES = torch.tensor([[-1, 0, 1, -1, 2, 3], [-1, 0, 1, 2, -1, 4]])


def test_shifted_channels_come_from_their_sources():
    z = noise(2, 6, 8)
    result = shift_tokens(z, SOURCES, None, 0)
    for position in range(6):
        above, left = (z[:, source] if source >= 0 else torch.zeros(2, 8) for source in SOURCES[:, position])
        expected = torch.cat([above[:, :2], left[:, 2:4], z[:, position, 4:]], 1)
        assert torch.equal(result[:, position], expected)


def test_sources_are_above_and_on_the_left():
    stream = make_transformer()[1]
    above, left = shift_sources(stream).tolist()
    assert above[:8] == left[:8] == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert above[8:] == [-1] * 5 + list(range(8, 18))
    assert left[8:] == [-1, 8, 9, 10, 11, -1, 13, 14, 15, 16, -1, 18, 19, 20, 21]


def shift_cache():
    """A cache for 5 shifted channels with 4 of 7 positions filled."""
    cache = ShiftCache(3, (2, 4, 7, 6), torch.device("cpu"), torch.float64, width=5)
    assert cache.channels.shape == (6, 2, 7, 5)
    for slot in range(6):
        cache.store_channels(slot, noise(2, 4, 5, seed=slot))
    cache.length = 4
    return cache


def test_stored_channels_are_returned_with_all_earlier_ones():
    cache = shift_cache()
    new = noise(2, 1, 5, seed=9)
    expected = torch.cat([noise(2, 4, 5, seed=2), new], 1)
    assert torch.equal(cache.store_channels(2, new), expected)
    assert torch.equal(cache.store_channels(3, new)[:, :4], noise(2, 4, 5, seed=3))


def test_branches_and_kept_rows_have_their_own_channels():
    cache = shift_cache().branch(torch.tensor([0, 0, 0, 1, 1, 1]), 7)
    cache.keep(torch.tensor([1, 5]))
    assert torch.equal(cache.store_channels(2, noise(2, 1, 5, seed=9))[:, :4], noise(2, 4, 5, seed=2))


# --- blocks


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("sandwich", [False, True])
def test_a_block_adds_its_layers(sandwich, reversible):
    options = {"norm": "layer", "mlp": "gelu", "bias": True, "sandwich": sandwich, "reversible": reversible}
    block, x = randomise(ForeignBlock(8, 2, **options), 5).double(), noise(2, 1, 6, 8)
    posts = (block.attention_post, block.mlp_post) if sandwich else (nn.Identity(), nn.Identity())

    def attend(x):
        return posts[0](block.attention(block.attention_norm(x), None))

    def feed_forward(x):
        return posts[1](block.mlp(block.mlp_norm(x)))

    if reversible:
        first = x[0] + attend(x[1])
        torch.testing.assert_close(block(x, None, None, 0), torch.stack([first, x[1] + feed_forward(first)]))
    else:
        middle = x[0] + attend(x[0])
        torch.testing.assert_close(block(x[0], None, None, 0), middle + feed_forward(middle))


def test_values_can_be_rotated_like_queries_and_keys():
    attention = randomise(RotatedValuesAttention(8, 2), 5).double()
    x, angle = noise(1, 3, 8), torch.tensor([0.3, 1.1, 2.0])
    cos, sin = angle.cos()[:, None].expand(3, 4), torch.stack([-angle.sin(), -angle.sin(), angle.sin(), angle.sin()], 1)
    table = torch.stack([cos, sin], 1).double()
    # The first position attends to itself alone: its output is its own rotated values.
    values = (x[0, 0] @ attention.qkv.weight.T)[16:].view(2, 4)
    rotated = values * table[0, 0] + values.roll(2, 1) * table[0, 1]
    torch.testing.assert_close(attention(x, table)[0, 0], rotated.flatten() @ attention.out.weight.T)


# --- the transformer


def test_only_what_needs_them_gets_foreign_blocks():
    assert type(make_transformer()[0]) is Transformer
    assert type(make_transformer("learned", block=BlockConfig(norm="layer", mlp="gelu", bias=True))[0]) is Transformer
    for changes in (
        {"block": BlockConfig(rotate_values=True)},
        {"block": BlockConfig(sandwich=True)},
        {"block": BlockConfig(reversible=True)},
        {"block": BlockConfig(token_shift=True)},
        {"divide_by_max": True},
        {"last_norms": 2},
        {"position": "table"},
    ):
        assert type(make_transformer(**changes)[0]) is ForeignTransformer


def test_a_rotary_table_among_the_weights_rotates_nothing_at_first():
    transformer, stream = make_transformer("table")
    table = transformer.state_dict()["table"]
    assert table.shape == (stream.length, 2, 12)
    assert bool((table[:, 0] == 1).all())
    assert not table[:, 1].any()
    assert "table" not in make_transformer("rope")[0].state_dict()


def test_output_is_the_mean_of_both_streams_divided_by_its_largest_channel_and_normalised_twice():
    transformer, _ = make_transformer(block=REVERSIBLE_BLOCK, position="absolute", divide_by_max=True, last_norms=2)
    block_outputs = []
    transformer.blocks[-1].register_forward_hook(lambda module, args, output: block_outputs.append(output))
    with torch.no_grad():
        hidden = transformer(torch.tensor([[1, 2, 3]]))
        x = block_outputs[0].mean(0)
        x = x / x.max(-1, keepdim=True).values
        torch.testing.assert_close(hidden, transformer.norm[1](transformer.norm[0](x)))
        logits = hidden @ transformer.head.weight.T + transformer.head.bias
        torch.testing.assert_close(transformer.logits(hidden, (5, 19)), logits[..., 5:19])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block": BlockConfig(token_shift=True), "n_embd": 6, "n_head": 3, "position": "learned"},
            "expected n_embd to be a multiple of 4 for block.token_shift, got 6",
        ),
        ({"last_norms": 0}, "expected last_norms of 1 or more, got 0"),
        ({"head_dim": 5, "position": "table"}, "a multiple of 2"),
        ({"position": "alibi"}, "expected position rope, table, learned, absolute, got 'alibi'"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_transformer(**changes)
