"""Which positions of a stream each one may look at: attention masks of DALL-E 1 and of its followers.

Everyone sees all that comes before the picture, and nobody what comes after him. Among the image ids, of which the
`m`-th is in row `m // w` and column `m % w`, a mask leaves

    full         all before
    row          the last w before, in raster order: back to the place just above (DALL-E 1)
    column       those above in the same column (DALL-E 1; `axial_col` of DALLE-pytorch)
    conv         a square of kernel × kernel places around, as far as they are before. At the edges it goes on in the
                 row above or below, as it does in raster order (DALL-E 1)
    conv_torus   the same, but going on at the opposite edge (ruDALL-E's second version)
    conv_square  the same, but ending at the edges (ruDALL-E's third version)
    axial_row    those on the left in the same row (DALLE-pytorch)
    conv_like    a square of kernel × kernel places whose last one is one's own (DALLE-pytorch)

The masks of DALL-E 1 are those of Ramesh et al. 2021, appendix B.1.
"""

import torch
from torch import Tensor, nn

from dalle_mini_impl.util.errors import UserError

KINDS = ("full", "row", "column", "conv", "conv_torus", "conv_square", "axial_row", "axial_col", "conv_like")


class AttentionMask(nn.Module):
    """What each position may look at, as a matrix and as lists.

    Args:
        allowed: (T, T) bool, of each position (row) to which others (columns); nothing above the diagonal.
        order: (T,) the positions in an order in which those that one sees lie side by side; by default as they are.
    """

    allowed: Tensor
    order: Tensor

    def __init__(self, allowed: Tensor, order: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("order", torch.arange(len(allowed)) if order is None else order, persistent=False)
        self._seen: dict[int, Tensor] = {}

    def seen(self, position: int) -> Tensor:
        """The positions (n,) that one may look at, rising; itself is the last."""
        places = self._seen.get(position)
        if places is None or places.device != self.allowed.device:
            places = self._seen[position] = self.allowed[position].nonzero()[:, 0]
        return places


def mask_matrix(kind: str, before: int, grid: tuple[int, int], kernel: int = 11) -> Tensor:
    """The matrix of a mask.

    Args:
        kind: one of `KINDS`.
        before: positions before the picture.
        grid: (h, w) of the picture.
        kernel: side of the square of the `conv` kinds; odd but for `conv_like`.

    Returns:
        (T, T) bool, T being `before` + h · w; True where the row's position may look at the column's.

    Raises:
        UserError: there is no such kind, or the kernel does not fit it.
    """
    if kind not in KINDS:
        raise UserError(f"unknown attention {kind!r}; expected one of {', '.join(KINDS)}")
    if kernel < 1 or (kernel % 2 == 0 and kind in ("conv", "conv_torus", "conv_square")):
        raise UserError(f"kernel {kernel} was given for attention {kind}; expected an odd number of 1 or more")
    h, w = grid
    allowed = torch.ones(before + h * w, before + h * w, dtype=torch.bool).tril()
    allowed[before:, before:] &= _picture(kind, h, w, kernel)
    return allowed


def contiguous_order(kind: str, before: int, grid: tuple[int, int]) -> Tensor:
    """The positions (T,) in an order in which those that one of this kind sees lie side by side; see `mask_matrix`."""
    h, w = grid
    picture = before + torch.arange(h * w).view(h, w)
    return torch.cat([torch.arange(before), (picture.T if kind in ("column", "axial_col") else picture).flatten()])


def _picture(kind: str, h: int, w: int, kernel: int) -> Tensor:
    """(h · w, h · w) bool among the image ids; says nothing of which comes first."""
    place = torch.arange(h * w)
    distance = place[:, None] - place
    down, right = place[:, None] // w - place // w, place[:, None] % w - place % w
    if kind == "row":
        return distance <= w
    if kind in ("column", "axial_col"):
        return right == 0
    if kind == "axial_row":
        return down == 0
    if kind == "conv_like":
        return (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel)
    reach = torch.arange(-(kernel // 2), kernel // 2 + 1)
    if kind == "conv":
        return torch.isin(distance, reach[:, None] * w + reach)
    if kind == "conv_torus":
        return torch.isin(down % h, reach % h) & torch.isin(right % w, reach % w)
    if kind == "conv_square":
        return (down.abs() <= kernel // 2) & (right.abs() <= kernel // 2)
    return torch.ones_like(distance, dtype=torch.bool)
