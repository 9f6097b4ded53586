"""A picture of which some stays: regions in pixels -> places of the token grid, and original pixels put back."""

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

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom lie just outside."""


@dataclass(frozen=True, eq=False)
class Region:
    """What of a picture is redrawn, in one of four ways."""

    rows: int | None = None
    """All but this many rows of the token grid from the top."""
    box: Box | None = None
    """A rectangle of the picture."""
    mask: Image.Image | None = None
    """What is white in a picture of the same size; transparent counts as white."""
    panel: bool = False
    """The lower half of a canvas whose upper half is the whole picture, squeezed."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None and value is not False]
        if len(given) != 1:
            raise UserError(
                f"{', '.join(given) or 'nothing'} came to say what to redraw; give one of rows, box, mask and panel"
            )

    def places(self, size: tuple[int, int], grid: tuple[int, int], factor: int) -> Tensor:
        """Which places of the token grid are redrawn: those of which any pixel is.

        Args:
            size: width and height of the picture.
            grid: (h, w).
            factor: pixels per place along each side, once the picture has the model's size.

        Returns:
            (h, w) bool.

        Raises:
            UserError: the region does not fit the picture, or is empty, or the rows are all there are.
        """
        h, w = grid
        if self.rows is not None or self.panel:
            rows = h // 2 if self.rows is None else self.rows
            if not 1 <= rows < h:
                raise UserError(f"{rows} rows to keep were given, expected 1 to {h - 1} of the {h} the model draws")
            return (torch.arange(h) >= rows)[:, None].expand(h, w).clone()
        mask = self._pixels(size)
        # A filter in which each pixel has its say, cropped as the picture is.
        fitted = ImageOps.fit(mask.convert("F"), (w * factor, h * factor), Image.Resampling.BOX)
        places = torch.from_numpy(np.array(fitted)).view(h, factor, w, factor).amax((1, 3)) > 0
        if not places.any():
            raise UserError("nothing is to be redrawn in the part of the picture that the model sees; mark more of it")
        return places

    def _pixels(self, size: tuple[int, int]) -> Image.Image:
        """A picture with 255 where it is to be redrawn, and 0 elsewhere."""
        if self.mask is not None:
            if self.mask.size != size:
                raise UserError(
                    f"a mask of {self.mask.width}×{self.mask.height} pixels was given for a picture of "
                    f"{size[0]}×{size[1]}; give one of the same size"
                )
            return on_background(self.mask).convert("L").point(lambda value: 255 * (value >= 128))
        left, top, right, bottom = self.box or (0, 0, 0, 0)
        if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
            raise UserError(
                f"box {left},{top},{right},{bottom} was given for a picture of {size[0]}×{size[1]} pixels; "
                f"expected left,top,right,bottom inside it with left < right and top < bottom"
            )
        mask = Image.new("L", size)
        mask.paste(255, self.box)
        return mask


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture at the model's size, and what of it stays."""

    picture: Image.Image
    """RGB."""
    known: KnownIds
    paste: bool
    """Whether finished pictures get back the original pixels of the places that stay."""
    settings: dict[str, Any]
    """What results record of it."""

    def finish(self, image: Image.Image) -> Image.Image:
        """A decoded picture, with the original pixels where they belong."""
        if not self.paste:
            return image
        stays = Image.fromarray((~self.known.redraw.numpy()).astype(np.uint8) * 255)
        return Image.composite(self.picture, image, stays.resize(image.size, Image.Resampling.NEAREST))


def make_canvas(
    tokenizer: ImageTokenizer, grid: tuple[int, int], picture: Image.Image, region: Region, paste: bool
) -> Canvas:
    """Encode a picture and tell which of its places are redrawn.

    Args:
        tokenizer: gives the image ids.
        grid: (h, w) that the model draws.
        picture: of any size; cropped to the grid's proportions, and white where transparent.
        region: what is redrawn.
        paste: see `Canvas`.

    Raises:
        UserError: the region does not fit the picture, or is empty.
    """
    redraw = region.places(picture.size, grid, tokenizer.config.factor)
    facts = {"redrawn": ["".join(".#"[place] for place in row) for row in redraw.int().tolist()], "paste": paste}
    flat = on_background(picture)
    if region.panel:
        flat = squeezed(flat, model_size(tokenizer, grid), (grid[0] // 2) / grid[0])
    shown, image_ids = encode(tokenizer, grid, flat)
    settings = {"picture": fingerprint(picture), "panel": region.panel, **facts}
    return Canvas(shown, KnownIds(image_ids, redraw), paste, settings)


def vary(tokenizer: ImageTokenizer, grid: tuple[int, int], picture: Image.Image, strength: float) -> Canvas:
    """Encode a picture any place of which may be redrawn.

    Args:
        tokenizer: gives the image ids.
        grid: (h, w) that the model draws.
        picture: as `make_canvas` has it.
        strength: chance of each place to be drawn anew, in (0, 1].

    Raises:
        UserError: the strength is out of range.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength} was given, expected more than 0 and at most 1, where nothing is kept")
    shown, image_ids = encode(tokenizer, grid, picture)
    known = KnownIds(image_ids, torch.ones(grid, dtype=torch.bool), strength)
    return Canvas(shown, known, False, {"picture": fingerprint(picture), "strength": strength})


def encode(tokenizer: ImageTokenizer, grid: tuple[int, int], picture: Image.Image) -> tuple[Image.Image, Tensor]:
    """A picture at the model's size, and its image ids (h, w)."""
    pixels = to_pixels([picture], model_size(tokenizer, grid)[::-1])
    device = tokenizer.device
    return to_images(pixels)[0], tokenizer.encode(pixels.to(device))[0].cpu()


def model_size(tokenizer: ImageTokenizer, grid: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels of what the model draws."""
    return grid[1] * tokenizer.config.factor, grid[0] * tokenizer.config.factor


def squeezed(picture: Image.Image, size: tuple[int, int], share: float) -> Image.Image:
    """A canvas of `size` whose upper `share` is the whole picture; below it is white."""
    canvas = Image.new("RGB", size, "white")
    fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    canvas.paste(fitted.resize((size[0], round(size[1] * share)), Image.Resampling.LANCZOS))
    return canvas


def fingerprint(picture: Image.Image) -> str:
    """Which picture it is: a hash of its mode, size and pixels."""
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()[:16]
