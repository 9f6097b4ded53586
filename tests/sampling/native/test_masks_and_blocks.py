"""Blocks and attention masks of every kind in compiled code, against the same model in full precision."""

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
from dalle_mini_impl.sampling.packing import NativeDecoder, pack

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
    "rotated values": BlockConfig(rotate_values=True),
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
    "tied head": {"tied_head": True},
    "divided by max": {"divide_by_max": True, "last_norms": 2},
    "divided by max, layer norm": {"divide_by_max": True, "block": RU_DALLE, "position": "absolute"},
    "cycled masks": {
        "attention_masks": ("row", "column"),
        "last_attention_mask": "conv",
        "n_layer": 4,
        "mask_kernel": 3,
    },
}
MIXED = {"attention_masks": ("column", "full", "conv"), "mask_kernel": 3, "block": DALLE_PYTORCH}


def build(**options):
    """A model with random weights, also where a fresh model has zeros or ones."""
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


def some_ids(rows, length, same=0):
    """Random ids (rows, length); all rows begin with the same `same` ids."""
    ids = torch.randint(STREAM.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, :same] = ids[0, :same]
    return ids


def distance(x, y):
    """Root of the mean square difference, in standard deviations of y."""
    return float((x - y).square().mean().sqrt() / y.std())


@torch.inference_mode()
def check(exact, native, prompt, *, length=STREAM.length, limit=0.04):
    """Compare a prompt run in two pieces and its continuations run one by one with full precision."""
    ids = some_ids(3, length, same=prompt)
    expected, rounded = (
        model.logits(model(ids), STREAM.image_range).float() for model in (exact, copy.deepcopy(exact).bfloat16())
    )
    cache = native.new_cache(1, prompt)
    hidden = [native(piece, cache).expand(3, -1, -1) for piece in (ids[:1, :5], ids[:1, 5:prompt])]
    cache = cache.branch(torch.zeros(3, dtype=torch.int64), STREAM.length)
    hidden += [native(ids[:, t : t + 1], cache) for t in range(prompt, length)]
    logits = native.logits(torch.cat(hidden, 1), STREAM.image_range)
    for position in range(length):
        assert 0 < distance(logits[:, position], expected[:, position]) < limit
    assert distance(logits, expected) < distance(rounded, expected)
    assert distance(native.logits(native(ids), STREAM.image_range), expected) < distance(rounded, expected)


@pytest.mark.parametrize(
    "options", [{"block": block} for block in BLOCKS.values()] + list(OTHERS.values()), ids=[*BLOCKS, *OTHERS]
)
def test_all_kinds_of_blocks_are_close_to_full_precision(machine, options):
    check(*models(**options), STREAM.prefix_length)


# A prompt of the text alone, and two with the beginning of a picture.
@pytest.mark.parametrize("prompt", [8, 11, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_masks_are_close_to_full_precision(machine, kind, prompt):
    check(*models(attention_masks=(kind,), mask_kernel=3), prompt)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_masks_with_origin_target_are_close_to_full_precision(machine, kind):
    check(*models(attention_masks=(kind,), mask_kernel=3, mask_origin="target"), 8, length=STREAM.length - 1)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_masks_change_the_output(kind):
    # Otherwise the tests above would prove nothing
    ids = some_ids(3, STREAM.length)
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
def test_activations_equal_their_functions(machine, mlp, activation):
    exact = build(block=BlockConfig(norm="layer", mlp=mlp, hidden=96, bias=True), n_layer=1)
    x = torch.linspace(-9, 9, 96)
    with torch.no_grad():
        block = exact.blocks[0]
        for weight in (block.attention.out.weight, block.attention.out.bias, block.mlp.up.weight, block.mlp.down.bias):
            weight.zero_()
        block.mlp.up.bias.copy_(x if "-" in mlp or mlp == "gelu" else torch.cat([x, torch.ones(96)]))
        block.mlp.down.weight.copy_(torch.eye(96))
    native = pack(exact, "bf16", STREAM.image_range)
    assert isinstance(native, NativeDecoder)
    y = native.blocks(torch.zeros(1, 1, 96))[0, 0]
    torch.testing.assert_close(y, activation(x.double()).float(), rtol=2**-8, atol=2e-6)


@pytest.mark.parametrize("options", [MIXED, {"block": RU_DALLE, "attention_masks": ("row",)}])
def test_a_row_does_not_depend_on_other_rows_or_threads(machine, threads, options):
    native = models(**options)[1]
    ids = some_ids(19, STREAM.length)
    check_rows_and_threads(native, ids, threads)


@pytest.mark.parametrize("options", [MIXED, {"block": BlockConfig(reversible=True), "attention_masks": ("axial_col",)}])
def test_kept_rows_continue_as_if_they_were_alone(machine, options):
    native, kept = models(**options)[1], torch.tensor([1, 4, 7, 8])
    ids = some_ids(10, STREAM.length)
    ids[:, :10] = ids[[0, 5], :10].repeat_interleave(5, 0)

    @torch.inference_mode()
    def run(rows, until):
        cache = native.new_cache(2, 10)
        native(ids[[0, 5], :10], cache)
        prompts = torch.tensor([0, 1]).repeat_interleave(len(rows) // 2)
        cache, hidden = cache.branch(prompts, STREAM.length), []
        for position in range(10, STREAM.length):
            if position == until:
                cache.keep(kept)
                rows = rows[kept]
            hidden.append(native(ids[rows, position : position + 1], cache))
        return hidden

    pruned, alone = run(torch.arange(10), 27), run(kept, None)
    for before, after in zip(pruned[17:], alone[17:], strict=True):
        assert torch.equal(before, after)


def test_int8_weights_are_close_to_full_precision(machine):
    exact, native = models("int8", **MIXED)
    ids = some_ids(3, STREAM.length)
    with torch.inference_mode():
        expected, rounded = (model.logits(model(ids), STREAM.image_range) for model in (exact, native))
    assert 0 < distance(rounded, expected) < 0.06


# --- runs of cache slots


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("begin", "prompt"), [(0, 0), (8, 8), (13, 20)])
def test_slot_runs_cover_what_the_mask_allows(kind, begin, prompt):
    allowed, end = mask_matrix(kind, 8, (5, 7), 3), 41
    mask = AttentionMask(allowed, contiguous_order(kind, 8, (5, 7)))
    table = NativeMasks([None, mask]).table(begin, end, prompt)
    slots, runs, starts, _ = table.runs[mask]
    assert table.pointers[0] is None
    assert table.pointers[1] is not None
    assert sorted(slots.tolist()) == list(range(end - begin))
    own = {slot: begin + position for position, slot in enumerate(slots.tolist())}
    earlier = [position for position in mask.order.tolist() if position < prompt]
    for position in range(begin, end):
        first, middle, last = starts[2 * (position - begin) :][:3].tolist()
        attended = [earlier[slot] for run in runs[first:middle] for slot in range(*run.tolist())]
        attended += [own[slot] for run in runs[middle:last] for slot in range(*run.tolist())]
        assert sorted(attended) == allowed[position].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", ["row", "column", "axial_row", "axial_col"])
def test_rows_and_columns_are_one_run_each(kind):
    mask = AttentionMask(mask_matrix(kind, 8, (5, 7)), contiguous_order(kind, 8, (5, 7)))
    assert NativeMasks([mask]).table(8, 43, 8).runs[mask].starts.tolist() == list(range(71))


def test_without_masks_there_is_no_table():
    assert NativeMasks([None, None]).table(8, 43, 8) is None
