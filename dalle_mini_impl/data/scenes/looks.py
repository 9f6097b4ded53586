"""Drawings turned over, and drawn in another manner: black and white, as an outline, as pixel art."""

import numpy as np
from PIL import Image, ImageFilter

from dalle_mini_impl.data.scenes.colours import COLOURS, OPAQUE

TURNED_PIXELS = 32
"""Side at which a drawing is compared with itself turned over."""
MIN_TURNED_SHARE = 0.25
"""Least share of a drawing's pixels that differ from those of itself turned over, so that it shows."""
DIFFERENCE = 40
"""Difference in a channel, of 255, that shows."""
EDGE = 48
"""Difference between pixels two apart from which an outline has a line inside a drawing."""
LINE = 36
"""An outline's lines are this part of its longer side wide."""
PIXELS = (16, 20)
"""Fewest and most pixels of the longer side of pixel art."""
PIXEL_COLOURS = 8
"""Most colours of pixel art."""


def turn(drawing: Image.Image, how: str) -> Image.Image | None:
    """A drawing upside down or mirrored; None for one that hardly differs from itself so.

    Args:
        drawing: RGBA, cropped to what is drawn.
        how: one of `plan.TURNS`.
    """
    way = Image.Transpose.ROTATE_180 if how == "upside down" else Image.Transpose.FLIP_LEFT_RIGHT
    turned = drawing.transpose(way)
    small = [_on_grey(one.resize((TURNED_PIXELS, TURNED_PIXELS))) for one in (drawing, turned)]
    drawn = np.asarray(drawing.getchannel("A").resize((TURNED_PIXELS, TURNED_PIXELS))) >= OPAQUE
    differs = np.abs(small[0] - small[1]).max(-1) > DIFFERENCE
    return turned if differs.sum() >= MIN_TURNED_SHARE * max(1, drawn.sum()) else None


def _on_grey(drawing: Image.Image) -> np.ndarray:
    ground = Image.new("RGBA", drawing.size, (128, 128, 128, 255))
    return np.asarray(Image.alpha_composite(ground, drawing).convert("RGB")).astype(np.int64)


def with_look(drawing: Image.Image, look: str, side: int) -> Image.Image:
    """A drawing in another manner.

    Args:
        drawing: RGBA, cropped to what is drawn.
        look: one of `plan.LOOKS`.
        side: of the square in pixels that it will fill.

    Returns:
        RGBA; pixel art at its final size, whose longer side is at most `side`, the others of any.
    """
    if look == "black and white":
        return Image.merge("RGBA", [drawing.convert("RGB").convert("L")] * 3 + [drawing.getchannel("A")])
    return _outline(drawing) if look == "outline" else _pixel_art(drawing, side)


def _outline(drawing: Image.Image) -> Image.Image:
    """Dark lines on white, at the edge of a drawing and where its colours change strongly."""
    width = max(1, round(max(drawing.size) / LINE))
    wide = Image.new("RGBA", (drawing.width + 2 * width, drawing.height + 2 * width))
    wide.paste(drawing, (width, width))
    inside = wide.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE))
    ground = Image.new("RGBA", wide.size, (255, 255, 255, 255))
    smooth = Image.alpha_composite(ground, wide).convert("RGB").filter(ImageFilter.GaussianBlur(0.8))
    colours = np.asarray(smooth).astype(np.int64)
    edges = np.zeros(colours.shape[:2], dtype=bool)
    edges[:, 1:-1] |= np.abs(colours[:, 2:] - colours[:, :-2]).max(-1) > EDGE
    edges[1:-1] |= np.abs(colours[2:] - colours[:-2]).max(-1) > EDGE
    mask = np.asarray(inside) > 0
    shrunk = np.asarray(inside.filter(ImageFilter.MinFilter(2 * width + 1))) > 0
    lines = (mask & ~shrunk) | (edges & shrunk)
    pixels = np.full((*mask.shape, 4), 255, dtype=np.uint8)
    pixels[lines, :3] = COLOURS["black"]
    pixels[~mask, 3] = 0
    return Image.fromarray(pixels, "RGBA")


def _pixel_art(drawing: Image.Image, side: int) -> Image.Image:
    """Few, large pixels in few colours, each a square of as many real ones."""
    block = max(2, round(2 * side / sum(PIXELS)))
    longest = max(1, side // block)
    scale = longest / max(drawing.size)
    small = drawing.resize([max(1, round(length * scale)) for length in drawing.size], Image.Resampling.BOX)
    pixels = np.array(small)
    drawn = pixels[..., 3] >= OPAQUE
    pixels[..., 3] = 255 * drawn
    if drawn.any():
        row = Image.fromarray(pixels[drawn][None, :, :3], "RGB").quantize(PIXEL_COLOURS, Image.Quantize.MEDIANCUT)
        pixels[drawn, :3] = np.asarray(row.convert("RGB"))[0]
    return Image.fromarray(pixels, "RGBA").resize([length * block for length in small.size], Image.Resampling.NEAREST)
