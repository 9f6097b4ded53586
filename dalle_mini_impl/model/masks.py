"""Attention masks of DALL-E 1 and of later models: which positions of the stream each position attends to.

Every position attends to itself and to all text before it; none attends to later positions. Of the earlier image ids,
of which the `m`-th is in row `m // w` and column `m % w` of the token grid, a mask allows

    full         all
    row          the last w in raster order, back to the cell directly above (DALL-E 1)
    column       those above in the same column (DALL-E 1; `axial_col` of DALLE-pytorch)
    conv         those in a square of kernel × kernel cells around the position. At the left and right edges of the grid
                 it continues in the row above or below, as raster order does (DALL-E 1)
    conv_torus   the same, but continuing at the opposite edge of the same row (ruDALL-E's second version)
    conv_square  the same, but ending at the edges (ruDALL-E's third version)
    axial_row    those on the left in the same row (DALLE-pytorch)
    conv_like    those in a square of kernel × kernel cells with the position at its lower right corner (DALLE-pytorch)

The masks of DALL-E 1 are those of Ramesh et al. 2021, appendix B.1.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dalle_mini_impl.util.errors import UserError

KINDS = ("full", "row", "column", "conv", "conv_torus", "conv_square", "axial_row", "axial_col", "conv_like")


class MaskBlocks(NamedTuple):
    """A mask as FlexAttention takes it: squares of positions of which none is allowed are left out."""

    order: Tensor
    """(T,) the order in which queries, keys and values are laid out."""
    places: Tensor
    """(T,) place of each position in that order."""
    block_mask: Any
    """`BlockMask` over the places."""


class AttentionMask(nn.Module):
    """Which positions each position attends to.

    Args:
        allowed: (T, T) bool, True where the row's position attends to the column's; nothing above the diagonal.
        order: (T,) all positions in an order in which those that one attends to are mostly neighbours; by default
            ascending. A cache may store keys and values in this order.
    """

    allowed: Tensor
    order: Tensor

    def __init__(self, allowed: Tensor, order: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("order", torch.arange(len(allowed)) if order is None else order, persistent=False)
        self._attended: dict[int, Tensor] = {}
        self._blocks: dict[tuple[int, torch.device], MaskBlocks] = {}

    def attended(self, position: int) -> Tensor:
        """The positions (n,) that a position attends to, ascending; the last is the position itself."""
        positions = self._attended.get(position)
        if positions is None or positions.device != self.allowed.device:
            positions = self._attended[position] = self.allowed[position].nonzero()[:, 0]
        return positions

    def blocks(self, length: int) -> MaskBlocks:
        """The mask of the first `length` positions in blocks, on the device of `allowed`; made once."""
        key = (length, self.allowed.device)
        if key not in self._blocks:
            self._blocks[key] = self._make_blocks(length)
        return self._blocks[key]

    def _make_blocks(self, length: int) -> MaskBlocks:
        from torch.nn.attention.flex_attention import create_block_mask

        order = self.order[self.order < length]
        places = order.argsort()
        allowed = self.allowed[order][:, order].contiguous()

        def is_allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return allowed[query, key]

        block_mask = create_block_mask(is_allowed, None, None, length, length, device=str(allowed.device))
        return MaskBlocks(order, places, block_mask)


def mask_matrix(kind: str, before: int, grid: tuple[int, int], kernel: int = 11) -> Tensor:
    """The matrix of a mask.

    Args:
        kind: one of `KINDS`.
        before: number of positions before the picture.
        grid: (h, w) of the picture.
        kernel: side of the square of the `conv` kinds; odd except for `conv_like`.

    Returns:
        (T, T) bool with T = `before` + h · w; True where the row's position attends to the column's.

    Raises:
        UserError: the kind is unknown, or the kernel does not fit it.
    """
    if kind not in KINDS:
        raise UserError(f"expected attention mask {', '.join(KINDS)}, got {kind!r}; choose one of these")
    if kernel < 1 or (kernel % 2 == 0 and kind in ("conv", "conv_torus", "conv_square")):
        odd = "an odd mask_kernel" if kind != "conv_like" else "a mask_kernel"
        raise UserError(f"expected {odd} of 1 or more for attention mask {kind}, got {kernel}; change it")
    h, w = grid
    kernel = min(kernel, 2 * max(grid) + 1)  # a larger square reaches no more cells
    allowed = torch.ones(before + h * w, before + h * w, dtype=torch.bool).tril()
    allowed[before:, before:] &= _image_matrix(kind, h, w, kernel)
    return allowed


def contiguous_order(kind: str, before: int, grid: tuple[int, int]) -> Tensor:
    """`AttentionMask.order` (T,) for a kind of mask: column by column for the column masks, else ascending."""
    h, w = grid
    image = before + torch.arange(h * w).view(h, w)
    return torch.cat([torch.arange(before), (image.T if kind in ("column", "axial_col") else image).flatten()])


def _image_matrix(kind: str, h: int, w: int, kernel: int) -> Tensor:
    """(h · w, h · w) bool among the image ids, later ones not excluded yet."""
    cell = torch.arange(h * w)
    distance = cell[:, None] - cell
    down, right = cell[:, None] // w - cell // w, cell[:, None] % w - cell % w
    if kind == "row":
        return distance <= w
    if kind in ("column", "axial_col"):
        return right == 0
    if kind == "axial_row":
        return down == 0
    if kind == "conv_like":
        return (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel)
    offsets = torch.arange(-(kernel // 2), kernel // 2 + 1)
    if kind == "conv":
        return torch.isin(distance, offsets[:, None] * w + offsets)
    if kind == "conv_torus":
        return torch.isin(down % h, offsets % h) & torch.isin(right % w, offsets % w)
    if kind == "conv_square":
        return (down.abs() <= kernel // 2) & (right.abs() <= kernel // 2)
    return torch.ones_like(distance, dtype=torch.bool)
