"""Makes the plain ground around what is drawn in a picture transparent."""

import numpy as np
from PIL import Image

from dalle_mini_impl.data.fit import ground_of

NEAR = 24
"""Largest difference (0 to 255) from the ground's colour, in any channel, of what belongs to the ground."""
EDGE = 2
"""Pixels beside the ground in which its colour may be mixed with that of what is drawn."""


def without_ground(image: Image.Image) -> Image.Image:
    """Make the ground of a picture transparent, as far as it reaches from the border; what it encloses stays.

    Pixels between ground and drawing are mixtures of both colours. They get as much alpha as they have of the drawing's
    colour, that of the nearest pixel inside, and that colour alone, so that no fringe of the old ground remains.

    Args:
        image: RGB.

    Returns:
        RGBA of the same size; opaque where the picture has no plain ground.
    """
    rgba = np.array(image.convert("RGBA"))
    ground = ground_of(rgba)
    if ground is None or ground.colour is None:
        return Image.fromarray(rgba)
    difference = np.abs(rgba[..., :3].astype(np.int16) - np.array(ground.colour)).max(-1)
    outside = _reached(difference <= NEAR)
    alpha = np.where(outside, 0.0, 1.0)
    colours = rgba[..., :3].astype(np.float32)
    inside = ~_grown(outside, EDGE)
    for row, column in zip(*np.nonzero(~outside & ~inside), strict=True):
        near = _nearest(inside, row, column)
        if near is None:
            continue
        # alpha × drawing + (1 - alpha) × ground = pixel, in the channel in which the two differ most.
        gap = colours[near] - np.array(ground.colour)
        channel = np.abs(gap).argmax()
        if abs(gap[channel]) > NEAR:
            share = (colours[row, column, channel] - ground.colour[channel]) / gap[channel]
            if 0 <= share < 1:
                alpha[row, column], colours[row, column] = share, colours[near]
    rgba[..., :3] = colours.round().astype(np.uint8)
    rgba[..., 3] = (255 * alpha).round().astype(np.uint8)
    return Image.fromarray(rgba)


def _reached(passable: np.ndarray) -> np.ndarray:
    """Which of the passable cells (H, W) bool are connected with the border by sides of passable ones."""
    reached = passable.copy()
    reached[1:-1, 1:-1] = False
    while True:
        more = _grown(reached, 1) & passable
        if (more == reached).all():
            return reached
        reached = more


def _grown(cells: np.ndarray, steps: int) -> np.ndarray:
    """Cells (H, W) bool and those within so many steps to a side of them."""
    for _ in range(steps):
        padded = np.pad(cells, 1)
        cells = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return cells


def _nearest(cells: np.ndarray, row: int, column: int) -> tuple[int, int] | None:
    """The nearest of the cells (H, W) bool within `EDGE` + 1 rows and columns of a place; None if there is none."""
    top, left = max(0, row - EDGE - 1), max(0, column - EDGE - 1)
    found = np.argwhere(cells[top : row + EDGE + 2, left : column + EDGE + 2]) + np.array((top, left))
    if not len(found):
        return None
    near = found[np.square(found - (row, column)).sum(1).argmin()]
    return int(near[0]), int(near[1])
