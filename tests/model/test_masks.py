"""Attention masks against matrices written out by hand, and against the rules as loops."""

import pytest
import torch

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.model.attention import attend, attend_in_blocks
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.masks import KINDS, AttentionMask, contiguous_order, mask_matrix
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.util.errors import UserError

BEFORE, GRID = 3, (5, 7)


def parse(matrix):
    """A matrix written as 1 and . as bools."""
    return torch.tensor([[mark == "1" for mark in row] for row in matrix.split()])


# Two text positions before a picture of 3 × 4 cells.
ROW = """
1.............
11............
111...........
1111..........
11111.........
111111........
1111111.......
11.11111......
11..11111.....
11...11111....
11....11111...
11.....11111..
11......11111.
11.......11111
"""
COLUMN = """
1.............
11............
111...........
11.1..........
11..1.........
11...1........
111...1.......
11.1...1......
11..1...1.....
11...1...1....
111...1...1...
11.1...1...1..
11..1...1...1.
11...1...1...1
"""
AXIAL_ROW = """
1.............
11............
111...........
1111..........
11111.........
111111........
11....1.......
11....11......
11....111.....
11....1111....
11........1...
11........11..
11........111.
11........1111
"""
CONV_LIKE_2 = """
1.............
11............
111...........
1111..........
11.11.........
11..11........
111...1.......
1111..11......
11.11..11.....
11..11..11....
11....1...1...
11....11..11..
11.....11..11.
11......11..11
"""


def conv_3():
    """The 3 × 3 square in a picture 4 wide: 5, 4, 3 and 1 positions before, and the position itself."""
    matrix = torch.eye(14, dtype=torch.bool)
    matrix[:, :2] = True
    for position in range(2, 14):
        for back in (1, 3, 4, 5):
            if position - back >= 2:
                matrix[position, position - back] = True
    return matrix.tril()


@pytest.mark.parametrize(
    ("kind", "matrix", "kernel"),
    [
        ("row", ROW, 11),
        ("column", COLUMN, 11),
        ("axial_col", COLUMN, 11),
        ("axial_row", AXIAL_ROW, 11),
        ("conv_like", CONV_LIKE_2, 2),
    ],
)
def test_masks_equal_the_matrices_written_by_hand(kind, matrix, kernel):
    assert torch.equal(mask_matrix(kind, 2, (3, 4), kernel), parse(matrix))


def test_the_convolution_wraps_around_as_raster_order_does():
    assert torch.equal(mask_matrix("conv", 2, (3, 4), 3), conv_3())
    # To the right of the last cell of the row above comes the first cell of the query's own row.
    last = 2 + 1 * 4 + 3
    assert mask_matrix("conv", 2, (3, 4), 3)[last].nonzero().flatten().tolist() == [0, 1, 4, 5, 6, 8, 9]


def rule(kind, query, key, kernel):
    """Whether the cell `query` = (row, column) attends to the cell `key`, which does not come later."""
    (r, c), (i, j) = query, key
    h, w = GRID
    half = kernel // 2
    square = [(a, b) for a in range(-half, half + 1) for b in range(-half, half + 1)]
    return {
        "full": True,
        "row": r * w + c - i * w - j <= w,
        "column": c == j,
        "axial_col": c == j,
        "axial_row": r == i,
        "conv": any((r + a) * w + c + b == i * w + j for a, b in square),
        "conv_torus": any(((r + a) % h, (c + b) % w) == (i, j) for a, b in square),
        "conv_square": any((r + a, c + b) == (i, j) for a, b in square),
        "conv_like": 0 <= r - i < kernel and 0 <= c - j < kernel,
    }[kind]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_equal_their_rules(kind, kernel):
    allowed = mask_matrix(kind, BEFORE, GRID, kernel)
    length = BEFORE + GRID[0] * GRID[1]
    assert allowed.shape == (length, length)
    for query in range(length):
        for key in range(length):
            expected = key <= query
            if expected and key >= BEFORE:
                cells = [divmod(position - BEFORE, GRID[1]) for position in (query, key)]
                expected = rule(kind, *cells, kernel)
            assert bool(allowed[query, key]) == expected, (kind, query, key)


@pytest.mark.parametrize("kind", KINDS)
def test_all_masks_allow_the_text_and_the_position_itself_and_nothing_later(kind):
    allowed = mask_matrix(kind, BEFORE, GRID, 3)
    assert bool(allowed[BEFORE:, :BEFORE].all())
    assert bool(allowed.diagonal().all())
    assert not allowed.triu(1).any()


def test_attended_positions_are_those_of_the_matrix():
    mask = AttentionMask(mask_matrix("conv", BEFORE, GRID, 3))
    for position, row in enumerate(mask.allowed):
        assert mask.attended(position).tolist() == row.nonzero().flatten().tolist()
    assert "allowed" not in mask.state_dict()


def layout():
    return StreamConfig(text_length=2, text_vocab=17, grid=GRID, image_vocab=11)


def test_layers_cycle_through_the_masks():
    config = TransformerConfig(
        n_layer=6,
        n_head=2,
        n_embd=8,
        attention_masks=("row", "column", "row", "full"),
        last_attention_mask="conv",
        mask_kernel=3,
    )
    model = build_transformer(config, layout())
    attention_masks = [block.attention.attention_mask for block in model.blocks]
    expected = ["row", "column", "row", None, "row", "conv"]
    for mask, kind in zip(attention_masks, expected, strict=True):
        assert (mask is None) == (kind is None)
        assert mask is None or torch.equal(mask.allowed, mask_matrix(kind, 3, GRID, 3))
    assert attention_masks[0] is attention_masks[2]  # stored once


def test_masks_may_begin_at_the_position_that_predicts_the_first_image_id():
    config = TransformerConfig(n_layer=1, n_head=2, n_embd=8, attention_masks=("row",), mask_origin="target")
    allowed = build_transformer(config, layout()).blocks[0].attention.attention_mask.allowed
    length = Stream(layout()).length
    assert allowed.shape == (length, length)
    assert torch.equal(allowed[:-1, :-1], mask_matrix("row", 2, GRID))
    attended = allowed[2 + GRID[1] + 1].nonzero().flatten()
    assert attended.tolist() == [0, 1, *range(3, 11)]  # all text but its last position, then one row and one cell


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("diagonal", 3, GRID, 3), "expected attention mask full, row, column, .*, got 'diagonal'"),
        (("conv", 3, GRID, 4), "expected an odd mask_kernel of 1 or more for attention mask conv, got 4"),
        (("conv_torus", 3, GRID, 2), "expected an odd mask_kernel of 1 or more for attention mask conv_torus, got 2"),
        (("conv_square", 3, GRID, 4), "expected an odd mask_kernel of 1 or more for attention mask conv_square, got 4"),
        (("conv_like", 3, GRID, 0), "expected a mask_kernel of 1 or more for attention mask conv_like, got 0"),
    ],
)
def test_unknown_kinds_and_unfit_kernels_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        mask_matrix(*arguments)


def test_an_unknown_origin_is_refused():
    config = TransformerConfig(n_layer=1, n_head=2, n_embd=8, mask_origin="text")
    with pytest.raises(UserError, match="expected mask_origin input or target, got 'text'"):
        build_transformer(config, layout())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [BEFORE + 35, BEFORE + 34])
def test_attention_in_blocks_equals_attention_with_the_matrix(kind, length):
    mask = AttentionMask(mask_matrix(kind, BEFORE, GRID, 3), contiguous_order(kind, BEFORE, GRID))
    q, k, v = torch.randn(3, 2, 2, length, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = attend(q, k, v, mask.allowed[:length, :length])
        torch.testing.assert_close(attend_in_blocks(q, k, v, mask), expected)


def test_blocks_that_a_mask_leaves_out_are_left_out():
    # 8 + 32 × 32 positions are 9 × 9 blocks of 128; a column's positions are laid out side by side.
    kept = {}
    for kind in ("full", "row", "column", "conv"):
        mask = AttentionMask(mask_matrix(kind, 8, (32, 32)), contiguous_order(kind, 8, (32, 32)))
        kept[kind] = int(mask.blocks(8 + 32 * 32).block_mask.to_dense().sum())
    assert kept["full"] == 9 * 10 // 2
    # The first column of blocks holds the text, which all attend to; the others are those around the diagonal.
    assert kept["row"] <= 9 + 2 * 8
    assert kept["column"] <= 9 + 2 * 8
    assert kept["conv"] <= 9 + 3 * 8


def test_blocks_of_a_length_are_made_once():
    mask = AttentionMask(mask_matrix("row", BEFORE, GRID))
    assert mask.blocks(20) is mask.blocks(20)
    assert mask.blocks(20).block_mask is not mask.blocks(21).block_mask
