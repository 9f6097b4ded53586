"""Where things stand in a scene's picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dalle_mini_impl.data.scenes.colours import OPAQUE
from dalle_mini_impl.data.scenes.plan import ScenePlan

SIDES = {"big": (0.88, 0.98), "small": (0.2, 0.32), "": (0.6, 0.95)}
"""Size of a single object -> least and largest side of its box, of the picture's."""
COVERED = (0.08, 0.4)
"""Least and largest share of a thing that another one in front of it may cover."""
OVERLAPS = 12
"""Most ways of overlapping that are tried."""
DIFFERENCE = 40
"""Difference in a channel, of 255, from which the thing in front is seen on the one behind."""


def boxes(plan: ScenePlan, size: int, random: np.random.Generator) -> list[tuple[int, int, int]]:
    """Left, top and side of a square for each thing, in order; no two overlap."""
    count = sum(one.count for one in plan.objects)
    if count == 1:
        cells = [(0.0, 0.0, 1.0)]
    elif count == 2:
        relation = plan.relation or str(random.choice(["left", "right", "above", "below"]))
        near, far = (0.0, 0.25, 0.5), (0.5, 0.25, 0.5)
        cells = [near, far] if relation in ("left", "above") else [far, near]
        if relation in ("above", "below"):
            cells = [(top, left, side) for left, top, side in cells]
    else:
        quarters = [(left, top, 0.5) for top in (0.0, 0.5) for left in (0.0, 0.5)]
        cells = [quarters[index] for index in random.permutation(4)[:count]]
    shrink = random.uniform(*SIDES[plan.objects[0].size]) if count == 1 else random.uniform(0.72, 0.86)
    found = []
    for left, top, cell in cells:
        side = int(cell * size * shrink)
        slack = cell * size - side
        # Things that nearly touch would look like one, in small pictures too.
        shift = random.uniform(0, slack, 2) if count == 1 else random.uniform(0.3 * slack, 0.7 * slack, 2)
        found.append((int(left * size + shift[0]), int(top * size + shift[1]), side))
    return found


def fitted(sprite: Image.Image, box: tuple[int, int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """A drawing as large as its box allows, and its left top corner where it stands in the middle of it."""
    left, top, side = box
    scale = side / max(sprite.size)
    part = sprite.resize([max(1, round(length * scale)) for length in sprite.size], Image.Resampling.LANCZOS)
    return part, (left + (side - part.width) // 2, top + (side - part.height) // 2)


def overlapping_boxes(
    sprites: Sequence[Image.Image], size: int, random: np.random.Generator
) -> list[tuple[int, int, int]] | None:
    """Boxes of a thing in front of another one, which is larger, higher up and mostly visible.

    Args:
        sprites: the one in front and the one behind, RGBA, cropped to what is drawn.
        size: side of the picture in pixels.
        random: chooses among the ways that are possible.

    Returns:
        Left, top and side of both, in order; None where the one in front would not be seen well, or hide the other.
    """
    for _ in range(OVERLAPS):
        side, other = (int(size * random.uniform(*limits)) for limits in ((0.42, 0.54), (0.64, 0.76)))
        left = int(random.uniform(0.02, 0.98) * (size - side))
        found = [
            (left, size - side - int(size * random.uniform(0.02, 0.06)), side),
            (int(random.uniform(0.15, 0.85) * (size - other)), int(size * random.uniform(0.02, 0.1)), other),
        ]
        layers = []
        for sprite, box in zip(sprites, found, strict=True):
            layer = Image.new("RGBA", (size, size))
            layer.paste(*fitted(sprite, box))
            layers.append(np.asarray(layer).astype(np.int64))
        masks = [layer[..., 3] >= OPAQUE for layer in layers]
        both = masks[0] & masks[1]
        if not COVERED[0] <= both.sum() / max(1, masks[1].sum()) <= COVERED[1]:
            continue
        if both.sum() >= 0.15 * masks[0].sum() and _stands_out(layers[0][..., :3], layers[1][..., :3], both):
            return found
    return None


def _stands_out(front: np.ndarray, rear: np.ndarray, both: np.ndarray) -> bool:
    return float((np.abs(front - rear)[both].max(-1) > DIFFERENCE).mean()) > 0.6
