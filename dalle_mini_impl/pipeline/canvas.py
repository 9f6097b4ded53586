"""A picture some of which is redrawn: regions in pixels -> cells of the token grid, and original pixels put back."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import on_background, to_images, to_pixels
from dalle_mini_impl.util.memory import check_memory

CANVAS_BYTES = 12
"""Bytes per pixel that a picture takes besides itself: as RGB, and as a mask of bytes and of floats."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, eq=False)
class Region:
    """Which part of a picture is redrawn, given in exactly one of four ways.

    Raises:
        UserError: none of them is given, or several are.
    """

    rows: int | None = None
    """Everything below this many rows of the token grid."""
    box: Box | None = None
    """A rectangle of the picture."""
    mask: Image.Image | None = None
    """Where a mask of the picture's size is white or transparent."""
    panel: bool = False
    """The lower half of a canvas whose upper half is the whole picture, squeezed."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None and value is not False]
        if len(given) != 1:
            raise UserError(
                f"expected one of rows, box, mask and panel, got {', '.join(given) or 'none'}; say what to redraw in "
                f"one way"
            )

    def cells(self, size: tuple[int, int], grid: tuple[int, int], factor: int) -> Tensor:
        """The cells of the token grid to redraw: those of which any pixel lies in the region.

        Args:
            size: width and height of the picture.
            grid: (h, w).
            factor: pixels per cell along each side, once the picture has the model's size.

        Returns:
            (h, w) bool.

        Raises:
            UserError: the region does not fit the picture, or is empty, or all rows would be kept.
        """
        h, w = grid
        if self.rows is not None or self.panel:
            rows = h // 2 if self.rows is None else self.rows
            if not 1 <= rows < h:
                raise UserError(f"expected 1 to {h - 1} of the model's {h} rows to keep, got {rows} rows; change rows")
            return (torch.arange(h) >= rows)[:, None].expand(h, w).clone()
        mask = self._pixels(size)
        # Cropped and resized as the picture is; a box filter on floats keeps every marked pixel above 0.
        fitted = ImageOps.fit(mask.convert("F"), (w * factor, h * factor), Image.Resampling.BOX)
        cells = torch.from_numpy(np.array(fitted)).view(h, factor, w, factor).amax((1, 3)) > 0
        if not cells.any():
            raise UserError(
                "expected something to redraw in the part of the picture that is left after cropping it to the model's "
                "proportions, got nothing; mark more of it"
            )
        return cells

    def _pixels(self, size: tuple[int, int]) -> Image.Image:
        """A picture with 255 where it is to be redrawn, and 0 elsewhere."""
        width, height = size
        if self.mask is not None:
            if self.mask.size != size:
                raise UserError(
                    f"expected a mask of {width}×{height} pixels, the size of the picture, got "
                    f"{self.mask.width}×{self.mask.height}; resize the mask"
                )
            return on_background(self.mask).convert("L").point(lambda value: 255 * (value >= 128))
        left, top, right, bottom = self.box or (0, 0, 0, 0)
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UserError(
                f"expected a box left,top,right,bottom inside the {width}×{height} pixels of the picture, "
                f"with left < right and top < bottom, got {left},{top},{right},{bottom}; correct it"
            )
        mask = Image.new("L", size)
        mask.paste(255, self.box)
        return mask


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture at the model's size, and what of it is known."""

    picture: Image.Image
    """RGB."""
    known: KnownIds
    """Its image ids, and the cells to redraw."""
    paste: bool
    """Whether finished pictures get the original pixels back in all cells that are not redrawn."""
    metadata: dict[str, Any]
    """What results record of the canvas."""

    def paste_original(self, image: Image.Image) -> Image.Image:
        """A decoded picture, with the original pixels in all cells that are not redrawn, if `paste` says so."""
        if not self.paste:
            return image
        known = Image.fromarray((~self.known.redraw.numpy()).astype(np.uint8) * 255)
        return Image.composite(self.picture, image, known.resize(image.size, Image.Resampling.NEAREST))


def completion_canvas(
    tokenizer: ImageTokenizer, grid: tuple[int, int], picture: Image.Image, region: Region, paste: bool
) -> Canvas:
    """A canvas for `DalleMini.complete`: everything but a region is known.

    Args:
        tokenizer: encodes the picture.
        grid: (h, w) of the model.
        picture: of any size; cropped to the grid's proportions, and white where transparent.
        region: what is redrawn.
        paste: see `Canvas`.

    Raises:
        UserError: the region does not fit the picture, or is empty.
    """
    width, height = picture.size
    check_memory(width * height * CANVAS_BYTES, f"a picture of {width}×{height} pixels", "make it smaller")
    redraw = region.cells(picture.size, grid, tokenizer.config.factor)
    rows = ["".join(".#"[cell] for cell in row) for row in redraw.int().tolist()]
    flat = on_background(picture)
    if region.panel:
        flat = squeeze_to_top(flat, model_size(tokenizer, grid), (grid[0] // 2) / grid[0])
    fitted, image_ids = encode_picture(tokenizer, grid, flat)
    metadata = {"picture": picture_hash(picture), "panel": region.panel, "redrawn": rows, "paste": paste}
    return Canvas(fitted, KnownIds(image_ids, redraw), paste, metadata)


def variation_canvas(tokenizer: ImageTokenizer, grid: tuple[int, int], picture: Image.Image, strength: float) -> Canvas:
    """A canvas for `DalleMini.variations`: any cell may be redrawn.

    Args:
        tokenizer: encodes the picture.
        grid: (h, w) of the model.
        picture: see `completion_canvas`.
        strength: probability, in (0, 1], that a cell is redrawn.

    Raises:
        UserError: the strength is out of range.
    """
    if not 0 < strength <= 1:
        raise UserError(f"expected a strength above 0 and at most 1, got {strength}; 1 keeps nothing of the picture")
    fitted, image_ids = encode_picture(tokenizer, grid, picture)
    known = KnownIds(image_ids, torch.ones(grid, dtype=torch.bool), strength)
    return Canvas(fitted, known, False, {"picture": picture_hash(picture), "strength": strength})


def encode_picture(
    tokenizer: ImageTokenizer, grid: tuple[int, int], picture: Image.Image
) -> tuple[Image.Image, Tensor]:
    """The picture at the model's size, and its image ids (h, w) on the CPU."""
    pixels = to_pixels([picture], model_size(tokenizer, grid)[::-1])
    return to_images(pixels)[0], tokenizer.encode(pixels.to(tokenizer.device))[0].cpu()


def model_size(tokenizer: ImageTokenizer, grid: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels of the pictures that a model with this grid (h, w) generates."""
    return grid[1] * tokenizer.config.factor, grid[0] * tokenizer.config.factor


def squeeze_to_top(picture: Image.Image, size: tuple[int, int], share: float) -> Image.Image:
    """A white canvas of `size` (width, height) whose upper `share` shows the whole picture, cropped to `size` first."""
    canvas = Image.new("RGB", size, "white")
    fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    canvas.paste(fitted.resize((size[0], round(size[1] * share)), Image.Resampling.LANCZOS))
    return canvas


def picture_hash(picture: Image.Image) -> str:
    """Identifies a picture: the first 16 hex digits of SHA-256 over its mode, size and pixels."""
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()[:16]
