"""Ways through the space of embeddings (Ramesh et al. 2022, sections 3 and 4): all embeddings have norm 1."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.prior import principal_components
from dalle_mini_impl.util.errors import UserError

SMALLEST_ANGLE = 1e-4
"""Angle in radians below which embeddings are mixed linearly; the formula divides by its sine."""


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Rotate from one embedding to another (spherical interpolation, Shoemake 1985).

    Args:
        start: (D,), normalised.
        end: (D,), normalised.
        share: of the angle between them, 0 to 1.

    Returns:
        (D,), normalised.

    Raises:
        UserError: the share is out of range, or the two are opposite, so that there is no shortest way.
    """
    check_share(share, "share of the way")
    start, end = start.double(), end.double()
    # The arc cosine of the dot product would lose half of the digits of a small angle.
    angle = 2 * math.atan2(float((start - end).norm()), float((start + end).norm()))
    if math.pi - angle < SMALLEST_ANGLE:
        raise UserError("expected two embeddings that are not opposite, got opposite ones; choose others")
    if angle < SMALLEST_ANGLE:
        return F.normalize(torch.lerp(start, end, share), dim=0).float()
    mixed = math.sin((1 - share) * angle) * start + math.sin(share * angle) * end
    return F.normalize(mixed, dim=0).float()


def text_difference(source: Tensor, target: Tensor) -> Tensor:
    """The direction from the embedding of one text (D,) to that of another: their difference, normalised.

    Raises:
        UserError: the scorer embeds both texts alike.
    """
    difference = target.double() - source.double()
    if float(difference.norm()) < SMALLEST_ANGLE:
        raise UserError("expected two texts that the scorer tells apart, got equal embeddings; change one of them")
    return F.normalize(difference, dim=0).float()


def check_share(share: float, name: str) -> None:
    """Refuse a number that is no fraction.

    Raises:
        UserError: naming it.
    """
    if not 0 <= share <= 1:
        raise UserError(f"expected a {name} from 0 to 1, got {share}; change it")


def with_first_components(embed: Tensor, others: Tensor, counts: list[int]) -> Tensor:
    """What is left of an embedding with few principal components only (figure 7 of the paper).

    Args:
        embed: (D,), normalised.
        others: (n, D) embeddings, whose principal components are taken, in the order of their variance.
        counts: numbers of components, 0 to D.

    Returns:
        (len(counts), D), normalised.

    Raises:
        UserError: there are fewer than two embeddings, or a count is out of range.
    """
    width = len(embed)
    if len(others) < 2:
        raise UserError(f"expected at least 2 pictures for principal components, got {len(others)}; give more")
    if not all(0 <= count <= width for count in counts) or not counts:
        raise UserError(f"expected numbers of components from 0 to {width}, got {counts}; change them")
    mean, basis = principal_components(others)
    values = (embed - mean) @ basis.T
    kept = torch.arange(width) < torch.tensor(counts)[:, None]
    return F.normalize((values * kept) @ basis + mean, dim=-1)
