"""Blocks and masks of every kind in compiled code, against the same model in full precision."""

import copy
import dataclasses

import pytest
import torch
from helpers.models import check_rows_and_threads, randomise
from torch.nn import functional as F

from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.masks import KINDS, AttentionMask, contiguous_order, mask_matrix
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.native.masks import NativeMasks
from dalle_mini_impl.sampling.packing import pack

LAYOUT = StreamConfig(text_length=7, text_vocab=313, grid=(5, 7), image_vocab=61, bos_id=1)
STREAM = Stream(LAYOUT)
DALLE_PYTORCH = BlockConfig(norm="layer", mlp="geglu", bias=True, qk_norm=False, rotate_values=True, token_shift=True)
MIN_DALLE = BlockConfig(norm="layer", mlp="gelu", bias=True, qk_norm=False)
RU_DALLE = BlockConfig(norm="layer", mlp="gelu-tanh", bias=True, qk_norm=False, sandwich=True)
BLOCKS = {
    "layer norm": BlockConfig(norm="layer"),
    "bias": BlockConfig(bias=True),
    "geglu": BlockConfig(mlp="geglu"),
    "gelu": BlockConfig(mlp="gelu"),
    "gelu-tanh": BlockConfig(mlp="gelu-tanh", bias=True),
    "a width that fills no tile, gated": BlockConfig(mlp="geglu", hidden=53, bias=True),
    "a width that fills no tile, plain": BlockConfig(mlp="gelu", hidden=53, bias=True),
    "no qk norm": BlockConfig(qk_norm=False),
    "turned values": BlockConfig(rotate_values=True),
    "sandwich": BlockConfig(sandwich=True),
    "sandwich, layer norm": BlockConfig(sandwich=True, norm="layer"),
    "shift": BlockConfig(token_shift=True),
    "reversible": BlockConfig(reversible=True),
    "DALLE-pytorch": DALLE_PYTORCH,
    "DALLE-pytorch, reversible": dataclasses.replace(DALLE_PYTORCH, reversible=True),
    "minDALL-E": MIN_DALLE,
    "ruDALL-E": RU_DALLE,
}
OTHERS = {
    "narrow heads": {"head_dim": 16, "n_head": 2},
    "wide heads": {"head_dim": 48, "n_head": 4},
    "divide_by_max": {"divide_by_max": True, "last_norms": 2},
    "stable, layer norm": {"divide_by_max": True, "block": RU_DALLE, "position": "absolute"},
    "masks in turn": {
        "attention_masks": ("row", "column"),
        "last_attention_mask": "conv",
        "n_layer": 4,
        "mask_kernel": 3,
    },
}
MIXED = {"attention_masks": ("column", "full", "conv"), "mask_kernel": 3, "block": DALLE_PYTORCH}


def build(**options):
    """A model whose biases and norms are not the ones it begins with."""
    config = TransformerConfig(**{"n_layer": 3, "n_head": 2, "n_embd": 96, "position": "rope", **options})
    model = randomise(build_transformer(config, LAYOUT), 3, scale=1.5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=generator) / 2)
    return model


def models(precision="bf16", **options):
    """A model in full precision, and packed."""
    exact = build(**options)
    return exact, pack(copy.deepcopy(exact), precision, STREAM.image_range)


def some_ids(model, rows, length, same=0):
    """Random ids (rows, length), the first `same` those of the first row."""
    ids = torch.randint(model.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, :same] = ids[0, :same]
    return ids


def distance(x, y):
    """Root of the mean square difference, in standard deviations of y."""
    return float((x - y).square().mean().sqrt() / y.std())


@torch.inference_mode()
def check(exact, native, prompt, *, length=STREAM.length, limit=0.04):
    """Whether a prompt in two pieces, and its continuations one by one, are what full precision says."""
    ids = some_ids(exact, 3, length, same=prompt)
    expected, rounded = (
        model.logits(model(ids), STREAM.image_range).float() for model in (exact, copy.deepcopy(exact).bfloat16())
    )
    cache = native.new_cache(1, prompt)
    hidden = [native(piece, cache).expand(3, -1, -1) for piece in (ids[:1, :5], ids[:1, 5:prompt])]
    cache = cache.branch(3, STREAM.length)
    hidden += [native(ids[:, t : t + 1], cache) for t in range(prompt, length)]
    ours = native.logits(torch.cat(hidden, 1), STREAM.image_range)
    for place in range(length):
        assert 0 < distance(ours[:, place], expected[:, place]) < limit
    assert distance(ours, expected) < distance(rounded, expected)
    assert distance(native.logits(native(ids), STREAM.image_range), expected) < distance(rounded, expected)


@pytest.mark.parametrize(
    "options", [{"block": block} for block in BLOCKS.values()] + list(OTHERS.values()), ids=[*BLOCKS, *OTHERS]
)
def test_blocks_of_all_kinds(machine, options):
    check(*models(**options), STREAM.prefix_length)


# A prompt that is the text, and two that have the beginning of a picture as well.
@pytest.mark.parametrize("prompt", [8, 11, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_all_kinds(machine, kind, prompt):
    check(*models(attention_masks=(kind,), mask_kernel=3), prompt)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_masks_that_begin_one_place_before(machine, kind):
    check(*models(attention_masks=(kind,), mask_kernel=3, mask_origin="target"), 8, length=STREAM.length - 1)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_a_mask_is_not_no_mask(kind):
    # Else the tests above would show nothing
    ids = some_ids(build(), 3, STREAM.length)
    with torch.inference_mode():
        masked, full = (build(attention_masks=(name,), mask_kernel=3)(ids)[:, -9:] for name in (kind, "full"))
    assert distance(masked, full) > 0.2


@pytest.mark.parametrize(
    ("mlp", "activation"),
    [
        ("swiglu", F.silu),
        ("geglu", F.gelu),
        ("gelu", F.gelu),
        ("gelu-tanh", lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activations_are_exact(machine, mlp, activation):
    exact = build(block=BlockConfig(norm="layer", mlp=mlp, hidden=96, bias=True), n_layer=1)
    x = torch.linspace(-9, 9, 96)
    with torch.no_grad():
        block = exact.blocks[0]
        for weight in (block.attention.out.weight, block.attention.out.bias, block.mlp.up.weight, block.mlp.down.bias):
            weight.zero_()
        block.mlp.up.bias.copy_(x if "-" in mlp or mlp == "gelu" else torch.cat([x, torch.ones(96)]))
        block.mlp.down.weight.copy_(torch.eye(96))
    native = pack(exact, "bf16", STREAM.image_range)
    y = native.blocks[0](torch.zeros(1, 1, 96), None, None, 0)[0, 0]
    torch.testing.assert_close(y, activation(x.double()).float(), rtol=2**-8, atol=2e-6)


@pytest.mark.parametrize("options", [MIXED, {"block": RU_DALLE, "attention_masks": ("row",)}])
def test_a_row_does_not_depend_on_the_others_or_on_threads(machine, threads, options):
    native = models(**options)[1]
    ids = some_ids(native, 19, STREAM.length)
    check_rows_and_threads(native, ids, threads)


@pytest.mark.parametrize("options", [MIXED, {"block": BlockConfig(reversible=True), "attention_masks": ("axial_col",)}])
def test_rows_that_are_kept_go_on_as_if_they_were_all_there_is(machine, options):
    native, kept = models(**options)[1], torch.tensor([1, 4, 7, 8])
    ids = some_ids(native, 10, STREAM.length)
    ids[:, :10] = ids[[0, 5], :10].repeat_interleave(5, 0)

    @torch.inference_mode()
    def run(rows, until):
        cache = native.new_cache(2, 10)
        native(ids[[0, 5], :10], cache)
        cache, hidden = cache.branch(len(rows) // 2, STREAM.length), []
        for place in range(10, STREAM.length):
            if place == until:
                cache.keep(kept)
                rows = rows[kept]
            hidden.append(native(ids[rows, place : place + 1], cache))
        return hidden

    pruned, alone = run(torch.arange(10), 27), run(kept, None)
    for before, after in zip(pruned[17:], alone[17:], strict=True):
        assert torch.equal(before, after)


def test_whole_numbers_for_weights(machine):
    exact, native = models("int8", **MIXED)
    ids = some_ids(exact, 3, STREAM.length)
    with torch.inference_mode():
        expected, ours = (model.logits(model(ids), STREAM.image_range) for model in (exact, native))
    assert 0 < distance(ours, expected) < 0.06


# --- lists of what is seen


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("begin", "prompt"), [(0, 0), (8, 8), (13, 20)])
def test_runs_are_the_mask(kind, begin, prompt):
    allowed, end = mask_matrix(kind, 8, (5, 7), 3), 41
    made = AttentionMask(allowed, contiguous_order(kind, 8, (5, 7)))
    table = NativeMasks([None, made]).table(begin, end, prompt)
    pointers, parts = table.kept
    places, runs, starts = parts[made][1]
    assert pointers[0] is None
    assert pointers[1] is not None
    assert sorted(places.tolist()) == list(range(end - begin))
    own = {place: begin + position for position, place in enumerate(places.tolist())}
    earlier = [position for position in made.order.tolist() if position < prompt]
    for position in range(begin, end):
        first, middle, last = starts[2 * (position - begin) :][:3].tolist()
        seen = [earlier[place] for run in runs[first:middle] for place in range(*run.tolist())]
        seen += [own[place] for run in runs[middle:last] for place in range(*run.tolist())]
        assert sorted(seen) == allowed[position].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", ["row", "column", "axial_row", "axial_col"])
def test_rows_and_columns_lie_in_one_piece(kind):
    made = AttentionMask(mask_matrix(kind, 8, (5, 7)), contiguous_order(kind, 8, (5, 7)))
    starts = NativeMasks([made]).table(8, 43, 8).kept[1][made][1][2]
    assert starts.tolist() == list(range(71))


def test_without_masks_there_is_no_table():
    assert NativeMasks([None, None]).table(8, 43, 8) is None
