"""Hats and glasses on heads: where a drawing has its eyes and the top of its head, found by its shape alone.

Only a head that looks at the viewer is known with confidence: two dark spots alike, side by side, in the middle of it.
Drawings without them wear nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
from PIL import Image

from dalle_mini_impl.data.scenes.colours import OPAQUE

DARKEST = (50, 95)
"""Brightness, of 255, below which a pixel may be of an eye: first the darker ones alone."""
EYE_AREA = (0.0008, 0.03)
"""Least and largest area of an eye, of the square around the drawing."""
EYE_ASPECT = 2.2
"""Largest ratio of an eye's sides."""
ROUND = 0.65
"""Least share of its frame that an open eye fills; a disc fills 0.79."""
EYE_DISTANCE = (0.16, 0.6)
"""Least and largest distance between the eyes, of the width of the head at their height."""
MAX_TILT = 0.08
"""Largest difference of the heights of the eyes, of their distance."""
MIN_LIKENESS = 0.6
"""Least share of an eye that the mirrored other one covers."""
MAX_OFF_CENTRE = 0.09
"""Largest distance of the eyes' middle from the middle of the head, of its width."""
MIN_HEAD = 0.6
"""Least width of the head at the height of the eyes, of the whole drawing's; with less it is a whole animal."""
MIN_FOREHEAD = 0.3
"""Least height of the forehead, of the distance between the eyes, that a hat needs."""
MIN_DIFFERENCE = 40
"""Difference in a channel, of 255, from which a worn thing is seen on the head behind it."""
MIN_SEEN = 0.5
"""Least share of what it covers of the head on which it must be seen."""


@dataclass(frozen=True)
class Face:
    """Where a drawing's head is, in pixels from the left top corner."""

    eyes: tuple[float, float]
    """x of the left and of the right one."""
    eye_height: float
    """y of both."""
    top: float
    """y of the top of the head between the eyes."""
    width: float
    """Of the head at the height of the eyes."""


@dataclass(frozen=True)
class Worn:
    """How a thing is worn."""

    width: float
    """Of a hat, of the head's width; of glasses, of the distance between the eyes."""
    depth: float = 0.0
    """How far a hat is put over the top of the head, of the hat's height."""
    on_eyes: bool = False


WORN = {
    "crown": Worn(0.62, 0.22),
    "top hat": Worn(0.72, 0.22),
    "graduation cap": Worn(0.85, 0.33),
    "woman’s hat": Worn(0.9, 0.36),
    "billed cap": Worn(0.75, 0.4),
    "glasses": Worn(2.15, on_eyes=True),
    "sunglasses": Worn(2.15, on_eyes=True),
}
"""Concept of a thing that can be worn -> how."""
NOT_HEADS = (
    "hat", "nerd", "clown", "disguised", "partying", "upside", "saluting", "sneezing", "dotted", "shaking", "melting",
    "zany", "tree", "rosette", "flower", "blossom", "mushroom", "clover", "ant", "beetle", "bug", "butterfly",
    "cockroach", "crab", "fly", "lobster", "microbe", "mosquito", "scorpion", "spider",
)  # fmt: skip
"""Words in names of heads that wear something, stand on their head or dissolve, and of what has no head to speak of."""
MIN_SYMMETRY = 0.85
"""Least share of a drawing's silhouette that is the same when mirrored about the middle of the eyes."""


def is_head(concept: str, group: str) -> bool:
    """Whether a concept may be a head, or an animal whose drawing shows nothing else."""
    words = concept.lower().replace("-", " ").split()
    return (words[-1] == "face" or group == "Animals & Nature") and not set(words) & set(NOT_HEADS)


def find_face(rgba: np.ndarray) -> Face | None:
    """Where the eyes and the top of the head are; None for a drawing that does not look at the viewer.

    Args:
        rgba: (H, W, 4) uint8.
    """
    solid = rgba[..., 3] >= OPAQUE
    if not solid.any():
        return None
    brightness = rgba[..., :3] @ np.array([0.299, 0.587, 0.114])
    for limit in DARKEST:
        # Nostrils are lower than eyes. Brows are higher, but not round; only closed eyes are not round either.
        spots = sorted(
            _spots(solid & (brightness < limit), solid), key=lambda spot: (not spot.is_round, spot.centre[1])
        )
        faces = [face for pair in combinations(spots, 2) if (face := _face_of(*pair, solid)) is not None]
        if faces:
            return faces[0]
    return None


@dataclass(frozen=True, eq=False)
class _Spot:
    """A dark region that may be an eye."""

    left: int
    top: int
    mask: np.ndarray

    @property
    def is_round(self) -> bool:
        """Whether it fills the frame around it as a disc does."""
        return bool(self.mask.mean() >= ROUND)

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.mask.shape[1] / 2, self.top + self.mask.shape[0] / 2


def _spots(dark: np.ndarray, solid: np.ndarray) -> Iterator[_Spot]:
    """Connected dark regions of the size and proportions of eyes."""
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    square = max(rows[-1] - rows[0], columns[-1] - columns[0]) ** 2
    width = dark.shape[1]
    left_over = {int(index) for index in np.flatnonzero(dark)}
    while left_over:
        stack = [left_over.pop()]
        region = list(stack)
        while stack:
            index = stack.pop()
            near = {index - width, index + width}
            if index % width:
                near.add(index - 1)
            if index % width < width - 1:
                near.add(index + 1)
            found = near & left_over
            left_over -= found
            stack += found
            region += found
        if not EYE_AREA[0] * square <= len(region) <= EYE_AREA[1] * square:
            continue
        ys, xs = np.divmod(np.array(region), width)
        mask = np.zeros((ys.max() - ys.min() + 1, xs.max() - xs.min() + 1), dtype=bool)
        mask[ys - ys.min(), xs - xs.min()] = True
        if max(mask.shape) <= EYE_ASPECT * min(mask.shape):
            yield _Spot(int(xs.min()), int(ys.min()), mask)


def _face_of(first: _Spot, second: _Spot, solid: np.ndarray) -> Face | None:
    """The face with two spots as eyes; None if they are not eyes."""
    left, right = sorted((first, second), key=lambda spot: spot.centre[0])
    (x, y), (other_x, other_y) = left.centre, right.centre
    distance, middle, height = other_x - x, (x + other_x) / 2, (y + other_y) / 2
    if distance <= 0 or abs(y - other_y) > max(1, MAX_TILT * distance):
        return None
    column = np.flatnonzero(solid[: int(height), int(middle)])
    row = np.flatnonzero(solid[int(height)])
    if _likeness(left.mask, right.mask[:, ::-1]) < MIN_LIKENESS or not len(column) or not len(row):
        return None
    start, end = row[0], row[-1] + 1
    width = float(end - start)
    columns = np.flatnonzero(solid.any(0))
    if not EYE_DISTANCE[0] <= distance / width <= EYE_DISTANCE[1] or width < MIN_HEAD * (columns[-1] - columns[0]):
        return None
    if abs(middle - (start + end) / 2) > MAX_OFF_CENTRE * width or _symmetry(solid, middle) < MIN_SYMMETRY:
        return None
    return Face((x, other_x), height, float(column[0]), min(width, 2.9 * distance))


def _symmetry(solid: np.ndarray, middle: float) -> float:
    """Intersection over union of a silhouette and its mirror image about the column `middle`."""
    columns = np.arange(solid.shape[1])
    opposite = np.round(2 * middle - 1 - columns).astype(np.int64)
    inside = (opposite >= 0) & (opposite < len(columns))
    mirrored = np.where(inside, solid[:, opposite.clip(0, len(columns) - 1)], False)
    return float((solid & mirrored).sum() / (solid | mirrored).sum())


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks with their left top corners together."""
    shape = np.maximum(one.shape, other.shape)
    wide = [np.pad(mask, [(0, shape[0] - mask.shape[0]), (0, shape[1] - mask.shape[1])]) for mask in (one, other)]
    return float((wide[0] & wide[1]).sum() / (wide[0] | wide[1]).sum())


@dataclass(frozen=True)
class Wardrobe:
    """Heads of one vendor, and what they can wear."""

    heads: dict[str, tuple[int, Face]] = field(default_factory=dict)
    """Concept -> index in the store, and where the face is."""
    things: dict[str, int] = field(default_factory=dict)
    """Concept of `WORN` -> index in the store."""

    @cached_property
    def outfits(self) -> dict[str, tuple[str, ...]]:
        """Concept of a head -> concepts of what it can wear, at least one."""
        things = sorted(self.things)
        found = {
            concept: tuple(thing for thing in things if can_wear(face, thing))
            for concept, (_, face) in sorted(self.heads.items())
        }
        return {concept: fitting for concept, fitting in found.items() if fitting}

    def only(self, concepts: set[str]) -> "Wardrobe":
        """The part of it whose concepts are among some."""
        return Wardrobe(
            {concept: head for concept, head in self.heads.items() if concept in concepts},
            {concept: row for concept, row in self.things.items() if concept in concepts},
        )


def can_wear(face: Face, concept: str) -> bool:
    """Whether a head has room for a thing."""
    distance = face.eyes[1] - face.eyes[0]
    return WORN[concept].on_eyes or face.eye_height - face.top >= MIN_FOREHEAD * distance


def dress(head: np.ndarray, face: Face, worn: np.ndarray, concept: str) -> np.ndarray | None:
    """Put a thing on a head.

    Args:
        head: (H, W, 4) uint8, the drawing of the head.
        face: of the head, from `find_face`.
        worn: (h, w, 4) uint8, the drawing of the thing.
        concept: what it is, one of `WORN`.

    Returns:
        (2 H, 2 W, 4) uint8, with the head in the middle; None where the thing would hardly be seen.
    """
    how = WORN[concept]
    rows, columns = (np.flatnonzero((worn[..., 3] >= OPAQUE).any(axis)) for axis in (1, 0))
    item = Image.fromarray(worn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], "RGBA")
    width = how.width * (face.eyes[1] - face.eyes[0] if how.on_eyes else face.width)
    height = width * item.height / item.width
    item = item.resize((max(1, round(width)), max(1, round(height))), Image.Resampling.LANCZOS)
    middle = sum(face.eyes) / 2
    top = face.eye_height - height / 2 if how.on_eyes else face.top - (1 - how.depth) * height
    # The picture grows by half on each side, so that a hat has room.
    left, above = (length // 2 for length in (head.shape[1], head.shape[0]))
    both = Image.new("RGBA", (2 * head.shape[1], 2 * head.shape[0]))
    both.paste(Image.fromarray(head, "RGBA"), (left, above))
    place = round(left + middle - width / 2), round(above + top)
    box = (*place, place[0] + item.width, place[1] + item.height)
    before = np.asarray(both.crop(box)).astype(np.int16)
    both.alpha_composite(item, place)
    after = np.asarray(both.crop(box)).astype(np.int16)
    covered = (np.asarray(item)[..., 3] >= OPAQUE) & (before[..., 3] >= OPAQUE)
    seen = np.abs(after - before)[covered].max(-1) >= MIN_DIFFERENCE
    return np.asarray(both) if seen.size and seen.mean() > MIN_SEEN else None
