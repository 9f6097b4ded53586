"""What a picture of a scene shows, without a network: its background and its separate parts, with colour, place, extent
and look.

A part is a connected region that differs from the background. Things in composed scenes never touch, so in them each
thing is one part, unless the drawing itself has several.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.data.scenes.colours import name_shares, to_oklab

FRAME_SHARE = 1 / 32
"""Width of the border that the background is read from, of the side."""
DIFFERENCE = 0.1
"""Distance in OKLab from the background above which a pixel belongs to a part."""
LEAST_AREA = 0.006
"""Smallest part, as a share of the picture; smaller regions are noise."""
BRIDGED_SHARE = 1 / 64
"""Gaps in a drawing that are bridged, of the side."""
MIN_SHARE = 0.35
"""Least share of a part or a background that a named colour must have."""
MARGIN = 0.08
"""White around a cut-out part, of its longer side."""
GREY_CHROMA, MIN_GREY = 0.06, 0.85
"""Chroma below which a pixel counts as grey, and least share of such pixels in a part that is black and white."""
CORE, MAX_CORE = 24, 0.1
"""An outline is thinner than twice this part of its longer side, but for this share of its pixels."""
DARK = 0.6
"""Largest mean lightness of an outline."""
SQUARES = (13, 21)
"""Fewest and most squares along the longer side of pixel art that are looked for."""
MIN_LATTICE = 0.15
"""Least share of a part's edges on a lattice of squares from which it is pixel art; other drawings have up to .1."""
LEAST_SIDE = 24
"""Pixels of a part's longer side below which no lattice can be seen."""
CUT_OUT_SIZE = 128
"""Side of cut-out parts in pixels: what judges look at."""


@dataclass(frozen=True, eq=False)
class ScenePart:
    """One connected region."""

    cut_out: Tensor
    """(3, `CUT_OUT_SIZE`, `CUT_OUT_SIZE`) in [-1, 1], on white."""
    colour: str
    """Named colour that most of it has; empty for none."""
    centre: tuple[float, float]
    """Of its bounding box, x and y from the left top corner, as shares of the sides."""
    extent: float
    """Longer side of its bounding box, as a share of the picture's shorter side."""
    look: str
    """One of `data.scenes.plan.LOOKS` in which it is drawn; empty for none."""


@dataclass(frozen=True, eq=False)
class SceneParts:
    """What one picture shows."""

    background: str
    """Its named colour; empty for none."""
    parts: tuple[ScenePart, ...]


def find_parts(picture: np.ndarray) -> SceneParts:
    """Separate a picture into its background and its parts.

    Args:
        picture: (H, W, 3) uint8.
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    border = max(1, round(FRAME_SHARE * side))
    inner = np.zeros((height, width), dtype=bool)
    inner[border:-border, border:-border] = True
    frame = picture[~inner]
    lab = to_oklab(picture)
    drawn = np.linalg.norm(lab - to_oklab(np.median(frame, axis=0)), axis=-1) > DIFFERENCE
    labels = label_regions(drawn, max(1, round(BRIDGED_SHARE * side)))
    parts = []
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        if mask.mean() >= LEAST_AREA:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            centre = ((columns[0] + columns[-1] + 1) / 2 / width, (rows[0] + rows[-1] + 1) / 2 / height)
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            extent = max(mask[box].shape) / side
            rgba = np.dstack([picture, 255 * mask.astype(np.uint8)])
            look = look_of(lab[box], mask[box])
            parts.append(ScenePart(cut_out(rgba), _name(rgba[_eroded(mask)]), centre, extent, look))
    return SceneParts(_name(np.hstack([frame, np.full((len(frame), 1), 255, dtype=np.uint8)])), tuple(parts))


def look_of(lab: np.ndarray, mask: np.ndarray) -> str:
    """The manner in which a part is drawn, by its pixels alone: one of `data.scenes.plan.LOOKS`, or empty.

    Pixel art has its edges on a lattice of squares, an outline is thin and dark, and black and white has no colours.

    Args:
        lab: (h, w, 3) OKLab values of its bounding box.
        mask: (h, w) bool, which of these belong to it.
    """
    if lattice(lab[..., 0]) >= MIN_LATTICE:
        return "pixel art"
    inner = _eroded(mask)
    if (np.hypot(lab[..., 1], lab[..., 2])[inner] < GREY_CHROMA).mean() < MIN_GREY:
        return ""
    core = max(1, round(max(mask.shape) / CORE))
    is_thin = _shrunk(mask, core).sum() <= MAX_CORE * mask.sum()
    return "outline" if is_thin and lab[..., 0][mask].mean() < DARK else "black and white"


def lattice(lightness: np.ndarray) -> float:
    """How much of the edges of a drawing lie on a lattice of about as many squares as pixel art has; 0 to 1.

    Args:
        lightness: (h, w), of its bounding box.
    """
    longest = max(lightness.shape)
    if longest < LEAST_SIDE:
        return 0.0
    squares = np.arange(*SQUARES, 0.25)
    # A drawing of a few large squares has edges at multiples of these as well.
    periods = longest / np.stack([squares, squares / 2, squares / 3])
    across, down = (_on_lattice(np.abs(np.diff(lightness, axis=axis)).sum(1 - axis), periods) for axis in (1, 0))
    fine, halves, thirds = np.sqrt(across * down)
    return float((fine - np.maximum(halves, thirds)).max())


def _on_lattice(edges: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """The share of edges (n,) that lie at equal distances, for each distance: 1 where all do, near 0 where none do."""
    waves = np.exp(-2j * np.pi * np.arange(len(edges)) / periods[..., None])
    return np.abs(waves @ edges) / max(float(edges.sum()), 1e-9)


def label_regions(drawn: np.ndarray, bridged: int) -> np.ndarray:
    """Number the connected regions of a mask.

    Args:
        drawn: (H, W) bool.
        bridged: pixels by which regions are widened before they count as apart.

    Returns:
        (H, W) int64, 0 outside of all regions, equal numbers for pixels of one region.
    """
    mask = torch.from_numpy(drawn)[None, None].float()
    wide = F.max_pool2d(mask, 2 * bridged + 1, 1, bridged)
    labels = torch.arange(1, drawn.size + 1, dtype=torch.float32).reshape(1, 1, *drawn.shape) * wide
    while True:  # the largest number of a region spreads over it
        spread = F.max_pool2d(labels, 3, 1, 1) * wide
        if torch.equal(spread, labels):
            return (labels * mask)[0, 0].long().numpy()
        labels = spread


def cut_out(rgba: np.ndarray) -> Tensor:
    """A drawing in the middle of a white square that it nearly fills, (3, `CUT_OUT_SIZE`, `CUT_OUT_SIZE`) in [-1, 1].

    Args:
        rgba: (H, W, 4) uint8 with at least one pixel that is not transparent.
    """
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rows, columns = (np.flatnonzero((alpha[..., 0] > 0).any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    pixels = torch.from_numpy((rgba[..., :3] * alpha + 255 * (1 - alpha))[box] / 127.5 - 1).permute(2, 0, 1)
    height, width = pixels.shape[1:]
    side = round((1 + 2 * MARGIN) * max(height, width))
    left, top = (side - width) // 2, (side - height) // 2
    square = F.pad(pixels, (left, side - width - left, top, side - height - top), value=1.0)
    size = (CUT_OUT_SIZE, CUT_OUT_SIZE)
    return F.interpolate(square[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)


def _name(pixels: np.ndarray) -> str:
    """The named colour that most of some pixels (n, 4) have; empty for none."""
    shares = name_shares(pixels[None])
    name = max(shares, key=lambda colour: shares[colour])
    return name if shares[name] >= MIN_SHARE else ""


def _eroded(mask: np.ndarray) -> np.ndarray:
    """A mask without its outermost pixels, whose colours are mixed with the background's; as it is if none is left."""
    inner = _shrunk(mask, 1)
    return inner if inner.any() else mask


def _shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask without all that is less than so many pixels away from its outside."""
    outside = F.max_pool2d(torch.from_numpy(~mask)[None, None].float(), 2 * pixels + 1, 1, pixels)[0, 0].numpy() > 0
    return mask & ~outside
