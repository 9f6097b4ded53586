"""Fits pictures of any proportions into the frame of the model: padded, cropped or stretched.

The ground of a picture is what surrounds the things drawn in it: transparency, or one plain colour. A photograph that
fills its frame has none. Padding continues the ground, so that it does not show.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

ANALYSED_SIDE = 512
"""Pictures are examined at most at about this size in pixels, which also averages out their noise."""
BORDER_SHARE = 0.02
"""Width of the border that is examined, as a share of the picture's shorter side."""
TRANSPARENT_SHARE = 0.01
"""Share of a picture, or of its border, that must be transparent for transparency to be its ground."""
PLAIN_SHARE = 0.75
"""Share of the border that must have one colour for that colour to be the ground; drawings may touch the rest."""
PLAIN_SHARE_WITH_CORNERS = 0.5
"""The share that suffices where the four corners have that colour."""
PLAIN_TOLERANCE = 16
"""Largest difference (0 to 255) of a plain ground's pixels from its colour, in any channel: noise, slight shading."""
DRAWN_DIFFERENCE = 8
"""Smallest difference (0 to 255) from a plain ground's colour, in any channel, of what counts as drawn."""
DRAWN_ALPHA = 4
"""Smallest alpha (0 to 255) of what counts as drawn on a transparent ground."""
LEAST_SHARE = 0.5
"""With `auto`, a drawing takes at least this share of the frame's height or width; more empty margin is left out."""
MARGIN = 0.05
"""Share of the frame that `auto` leaves free on each side of a drawing, where it leaves out empty margins."""
FADE_SHARE = 0.15
"""Share of the frame over which padding changes from the colours at the picture's edge to the ground's colour."""

Change = Literal["whole", "padded", "trimmed", "cropped", "stretched"]
"""How a picture was fitted: unchanged besides its size; with ground added; with empty ground left out, and none added;
with a part cut off; with other proportions."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Ground:
    """What surrounds the things drawn in a picture."""

    colour: tuple[int, int, int] | None
    """Colour of a plain ground; None for a transparent one."""


@dataclass(frozen=True)
class FittedPicture:
    """A picture in the model's frame, and what became of it."""

    image: Image.Image
    """RGBA, of the frame's size."""
    change: Change
    lost: float
    """Share of what is drawn that was cut off; of the whole picture where it has no ground."""


@dataclass
class FitCounts:
    """How many pictures were fitted how, and how many of them lost what is drawn."""

    changes: Counter[str] = field(default_factory=Counter)
    """Pictures by `Change`."""
    lost_tenth: int = 0
    """Pictures that lost over a tenth of what is drawn."""
    lost_half: int = 0
    """Those of them that lost over half of it."""

    def add(self, fitted: FittedPicture) -> None:
        """Count a picture."""
        self.changes[fitted.change] += 1
        self.lost_tenth += fitted.lost > 0.1
        self.lost_half += fitted.lost > 0.5

    def merge(self, other: "FitCounts") -> None:
        """Add the counts of other pictures."""
        self.changes.update(other.changes)
        self.lost_tenth += other.lost_tenth
        self.lost_half += other.lost_half

    def text(self) -> str:
        """The counts in one line."""
        counts = ", ".join(f"{self.changes[name]} {name}" for name in get_args(Change) if self.changes[name])
        if not self.changes["cropped"]:
            return counts
        lost = f"over a tenth of what is drawn was cut off from {self.lost_tenth}, over half from {self.lost_half}"
        return f"{counts}; {lost}"


def fit_picture(image: Image.Image, frame: tuple[int, int], fit: str) -> FittedPicture:
    """Fit a picture into a frame.

    Args:
        image: of any mode and size.
        frame: height and width in pixels.
        fit: one of `config.data.FITS`. `pad` keeps the whole picture and continues its ground; `crop` cuts its middle
            out; `stretch` changes its proportions. `auto` pads pictures with a ground, but leaves out empty margins
            that would make what is drawn needlessly small, and crops the others.

    Returns:
        The fitted picture. Nothing that is drawn is cut off except by `crop`, or by `auto` if there is no ground.
    """
    image = image.convert("RGBA")
    reduction = tuple(max(1, side // ANALYSED_SIDE) for side in image.size)
    pixels = np.asarray(image.reduce(reduction) if max(reduction) > 1 else image)  # type: ignore[arg-type]
    ground = ground_of(pixels)
    if fit == "stretch":
        same = _same_proportions(image.size, frame)
        stretched = image.resize(frame[::-1], Image.Resampling.LANCZOS)
        return FittedPicture(stretched, "whole" if same else "stretched", 0.0)
    drawn = drawn_parts(pixels, ground)
    if fit == "crop" or (fit == "auto" and ground is None):
        cropped = ImageOps.fit(image, frame[::-1], Image.Resampling.LANCZOS)
        if _same_proportions(image.size, frame):
            return FittedPicture(cropped, "whole", 0.0)
        lost = _lost(drawn, reduction, _middle(image.size, frame))
        return FittedPicture(cropped, "cropped" if lost or ground is None else "trimmed", lost)
    window = _whole(image.size, frame)
    if fit == "auto":
        window = _around(_bounds(drawn, reduction, image.size), image.size, frame)
    left, top, right, bottom = window
    fitted = _cut(image, window, frame, ground or Ground(_border_colour(pixels)))
    if min(left, top, image.width - right, image.height - bottom) < -0.5:
        return FittedPicture(fitted, "padded", 0.0)
    trimmed = max(left, top, image.width - right, image.height - bottom) > 0.5
    return FittedPicture(fitted, "trimmed" if trimmed else "whole", 0.0)


def ground_of(pixels: np.ndarray) -> Ground | None:
    """The ground of a picture, judged by its border and its transparent parts.

    Args:
        pixels: (H, W, 4) uint8 RGBA.

    Returns:
        The ground; None where the picture fills its frame.
    """
    border = border_pixels(pixels)
    if max((alpha < 128).mean() for alpha in (pixels[..., 3], border[:, 3])) >= TRANSPARENT_SHARE:
        return Ground(None)
    colour = _border_colour(pixels)
    share = _is_plain(border, colour).mean()
    with_corners = bool(_is_plain(pixels[:: max(1, len(pixels) - 1), :: max(1, pixels.shape[1] - 1)], colour).all())
    return Ground(colour) if share >= (PLAIN_SHARE_WITH_CORNERS if with_corners else PLAIN_SHARE) else None


def border_pixels(pixels: np.ndarray) -> np.ndarray:
    """The pixels (n, 4) along the border of a picture (H, W, 4)."""
    height, width = pixels.shape[:2]
    thick = max(1, round(BORDER_SHARE * min(height, width)))
    if min(height, width) <= 2 * thick:
        return pixels.reshape(-1, 4)
    middle = pixels[thick:-thick]
    parts = (pixels[:thick], pixels[-thick:], middle[:, :thick], middle[:, -thick:])
    return np.concatenate([part.reshape(-1, 4) for part in parts])


def _is_plain(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels (…, 4) have about the colour of a plain ground."""
    return (np.abs(pixels[..., :3].astype(np.int16) - np.array(colour)) <= PLAIN_TOLERANCE).all(-1)


def _border_colour(pixels: np.ndarray) -> tuple[int, int, int]:
    """Median of each channel: what is drawn at a smaller part of the border has no influence."""
    red, green, blue = np.median(border_pixels(pixels)[:, :3], axis=0).round().astype(int).tolist()
    return red, green, blue


def drawn_parts(pixels: np.ndarray, ground: Ground | None) -> np.ndarray:
    """Where something is drawn on the ground of a picture (H, W, 4): (H, W) bool; everywhere if there is none."""
    if ground is None:
        return np.ones(pixels.shape[:2], bool)
    if ground.colour is None:
        return pixels[..., 3] >= DRAWN_ALPHA
    return (np.abs(pixels[..., :3].astype(np.int16) - np.array(ground.colour)) >= DRAWN_DIFFERENCE).any(-1)


def drawn_bounds(drawn: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the box around what is drawn (H, W) bool; the whole of an empty picture."""
    if not drawn.any():
        return 0, 0, drawn.shape[1], drawn.shape[0]
    across, down = (np.flatnonzero(drawn.any(axis)) for axis in (0, 1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def _bounds(drawn: np.ndarray, reduction: tuple[int, ...], size: tuple[int, int]) -> Box:
    """The box around what is drawn in pixels of the picture (width, height) that was reduced."""
    left, top, right, bottom = drawn_bounds(drawn)
    # What is drawn may begin faintly in the cell before.
    return (
        max(0, (left - 1) * reduction[0]),
        max(0, (top - 1) * reduction[1]),
        min(size[0], (right + 1) * reduction[0]),
        min(size[1], (bottom + 1) * reduction[1]),
    )


def _whole(size: tuple[int, int], frame: tuple[int, int]) -> Box:
    """The smallest window with the frame's proportions that holds the whole picture (width, height)."""
    height = max(size[1], size[0] * frame[0] / frame[1])
    return _window((size[0] / 2, size[1] / 2), height, frame)


def _middle(size: tuple[int, ...], frame: tuple[int, int]) -> Box:
    """The largest window with the frame's proportions inside the picture (width, height)."""
    height = min(size[1], size[0] * frame[0] / frame[1])
    return _window((size[0] / 2, size[1] / 2), height, frame)


def _around(bounds: Box, size: tuple[int, int], frame: tuple[int, int]) -> Box:
    """A window that holds what is drawn, and no more of the empty ground than the picture or its proportions give it.

    It is never smaller than the largest window inside the picture, except where what is drawn would then be small, and
    never larger than the window that holds the whole picture.
    """
    aspect = frame[1] / frame[0]
    left, top, right, bottom = bounds
    whole, middle = max(size[1], size[0] / aspect), min(size[1], size[0] / aspect)
    needed = max(bottom - top, (right - left) / aspect)
    height = min(whole, max(needed / (1 - 2 * MARGIN), min(middle, needed / LEAST_SHARE)))
    lengths = (height * aspect, height)
    # Where the window is smaller than the picture it follows what is drawn; where it is larger, it is centred.
    centre = [
        side / 2 if length >= side else min(max((low + high) / 2, length / 2), side - length / 2)
        for side, length, low, high in zip(size, lengths, (left, top), (right, bottom), strict=True)
    ]
    return _window((centre[0], centre[1]), height, frame)


def _window(centre: tuple[float, float], height: float, frame: tuple[int, int]) -> Box:
    width = height * frame[1] / frame[0]
    x, y = centre
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _lost(drawn: np.ndarray, reduction: tuple[int, ...], window: Box) -> float:
    """Share of what is drawn that lies outside of a window."""
    left, top, right, bottom = (round(edge / step) for edge, step in zip(window, reduction * 2, strict=True))
    total = int(drawn.sum())
    return 1 - int(drawn[max(0, top) : bottom, max(0, left) : right].sum()) / total if total else 0.0


def _same_proportions(size: tuple[int, int], frame: tuple[int, int]) -> bool:
    """Whether a picture (width, height) fills a frame (height, width) up to half a pixel of either."""
    width, height = size
    return abs(width * frame[0] - height * frame[1]) <= max(frame[0], frame[1], width, height) / 2


def _cut(image: Image.Image, window: Box, frame: tuple[int, int], ground: Ground) -> Image.Image:
    """Resize the part of an RGBA picture in a window to the frame, and continue the ground around it."""
    left, top, right, bottom = window
    box = max(0.0, left), max(0.0, top), min(float(image.width), right), min(float(image.height), bottom)
    scale = frame[0] / (bottom - top)
    # The place of the picture in the frame, in whole pixels; at least one, however narrow the picture is.
    x, width = _place((box[0] - left) * scale, (box[2] - left) * scale, frame[1])
    y, height = _place((box[1] - top) * scale, (box[3] - top) * scale, frame[0])
    # Pillow multiplies colours with alpha before resizing, so transparent pixels leave no fringes.
    part = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    if ground.colour is None:
        fitted = Image.new("RGBA", frame[::-1])
        fitted.paste(part, (x, y))
        return fitted
    around = ((y, frame[0] - y - height), (x, frame[1] - x - width))
    return Image.fromarray(_continued(np.asarray(part), around, np.array(ground.colour, np.float32)))


def _place(start: float, end: float, length: int) -> tuple[int, int]:
    """First pixel and number of pixels of a line from `start` to `end` within a frame of some length."""
    first = min(max(0, round(start)), length - 1)
    return first, min(length - first, max(1, round(end) - first))


def _continued(pixels: np.ndarray, around: tuple[tuple[int, int], tuple[int, int]], ground: np.ndarray) -> np.ndarray:
    """Continue the ground of a picture beyond its edges.

    A ground is not exactly uniform: it has noise and shading. Next to the picture the padding therefore has the
    colours of its edge, where these are the ground's, and further away the ground's colour.

    Args:
        pixels: (H, W, 4) uint8 RGBA.
        around: rows above and below, columns left and right to add.
        ground: (3,) its colour.

    Returns:
        (H', W', 4) uint8.
    """
    for axis in (0, 1):
        if not any(around[axis]):
            continue
        lines = np.moveaxis(pixels, axis, 0)
        fade = FADE_SHARE * (len(lines) + sum(around[axis]))
        before = _faded(lines[0], around[axis][0], fade, ground)[::-1]
        after = _faded(lines[-1], around[axis][1], fade, ground)
        pixels = np.moveaxis(np.concatenate([before, lines, after]), 0, axis)
    return np.ascontiguousarray(pixels)


def _faded(edge: np.ndarray, count: int, fade: float, ground: np.ndarray) -> np.ndarray:
    """`count` lines (count, n, 4), from the colours of an edge (n, 4) to the ground's within `fade` lines."""
    difference = edge[:, :3] - ground
    drawn = (np.abs(difference) > PLAIN_TOLERANCE).any(-1) | (edge[:, 3] < 255)
    # What is drawn is not continued, nor what resizing has made of the pixels beside it.
    difference[np.convolve(drawn, np.ones(7), "same")[: len(edge)] > 0.5] = 0
    smooth = max(1, math.ceil(fade / 4)) | 1
    padded = np.pad(difference, ((smooth // 2, smooth // 2), (0, 0)), mode="edge")
    difference = np.stack([np.convolve(channel, np.full(smooth, 1 / smooth), "valid") for channel in padded.T], -1)
    weight = (1 - (np.arange(count) + 0.5) / fade).clip(0)
    lines = np.full((count, len(edge), 4), 255, np.uint8)
    lines[..., :3] = (ground + weight[:, None, None] * difference).round().clip(0, 255)
    return lines
