"""Requests -> fields and pictures, within limits on bytes and pixels."""

import io
import json
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Request
from PIL import Image, ImageOps
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from torch import Tensor

from dalle_mini_impl.config.serving import MEGABYTE, ServiceLimits
from dalle_mini_impl.pipeline.canvas import Region
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.serve.errors import ApiError
from dalle_mini_impl.serve.fields import Fields, parse
from dalle_mini_impl.util.images import on_background, to_rgb_or_rgba

M = TypeVar("M", bound=Fields)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats of uploaded pictures, by Pillow's names."""
MAX_IMAGES = 16
"""Most files of a request."""
LONGEST_SIDE = 1024
"""Pixels along the longer side of a picture that waits to be varied: models look at fewer."""
MAX_FIELDS = 1000
"""Most fields of a form."""
JSON_TYPES = ("application/json", "")
"""Content types that are read as JSON; a request without one is."""


class Upload(NamedTuple):
    """A request that was read."""

    values: dict[str, Any]
    """Of the fields; names that end in `[]`, and repeated ones, have lists."""
    files: dict[str, list[bytes]]
    """Content of the files, by field."""

    def image(self, name: str) -> bytes:
        """The one file of a field.

        Raises:
            ApiError: there is none, or several.
        """
        files = self.files.get(name, [])
        if len(files) != 1:
            raise ApiError(f"expected one picture as {name}, got {len(files)}; send one as a file", param=name)
        return files[0]


async def read_json(request: Request, kind: type[M]) -> M:
    """The fields of a request whose body is JSON.

    Raises:
        ApiError: it is not, or has wrong fields.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in JSON_TYPES:
        raise ApiError(f"expected a JSON body, got {content_type!r}; send application/json", 415)
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(f"expected a JSON object, got something else ({error}); correct it") from error
    return parse(kind, values)


async def read_form(request: Request, limits: ServiceLimits) -> Upload:
    """A request whose body is a form with files, which are kept in memory.

    Raises:
        ApiError: it is not, or has too many parts.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise ApiError(f"expected multipart/form-data, got {content_type!r}; send pictures as files of a form", 415)
    MultiPartParser.spool_max_size = int(limits.max_upload * MEGABYTE) + 1  # larger files would be put on the disk
    values: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=MAX_IMAGES, max_fields=MAX_FIELDS) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(await value.read())
            elif name in values or key != name:
                before = values.get(name, [])
                values[name] = [*(before if isinstance(before, list) else [before]), value]
            else:
                values[name] = value
    return Upload(values, files)


def decode_upload(content: bytes, name: str, limits: ServiceLimits) -> Image.Image:
    """Decode an uploaded picture, RGB or RGBA, upright; its size is checked before its pixels are decoded.

    Raises:
        ApiError: it is no picture of a known format, is damaged or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels <= limits.max_pixels:
                image.load()
                return to_rgb_or_rgba(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = limits.max_pixels + 1
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged data
        raise ApiError(
            f"expected a picture as {name}, got a file that cannot be read as one; send a PNG, JPEG or WebP", param=name
        ) from error
    raise ApiError(
        f"expected at most {limits.max_pixels} pixels in {name}, got more; make the picture smaller", param=name
    )


def prepare_scored(content: bytes, preprocess: Preprocess, limits: ServiceLimits) -> Tensor:
    """An uploaded picture as a scorer looks at it, (1, 3, S, S): much smaller while it waits.

    Raises:
        ApiError: see `decode_upload`.
    """
    return preprocess.from_images([decode_upload(content, "image", limits)])


class Prepared(NamedTuple):
    """A picture at the model's size, as it waits to be edited."""

    picture: Image.Image
    """RGB."""
    mask: Image.Image
    """White where it is redrawn."""


def prepare_varied(content: bytes, limits: ServiceLimits) -> Image.Image:
    """An uploaded picture with sides of at most `LONGEST_SIDE`, as it waits to be varied.

    Raises:
        ApiError: see `decode_upload`.
    """
    picture = decode_upload(content, "image", limits)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def prepare_edit(
    content: bytes, mask_content: bytes | None, limits: ServiceLimits, grid: tuple[int, int], factor: int
) -> Prepared:
    """An uploaded picture that is to be edited, at the model's size.

    Args:
        content: of the picture; where there is no mask, it is redrawn where it is transparent.
        mask_content: of a picture of the same size; it is redrawn where this is transparent, or white if it has no
            transparency.
        limits: of the service.
        grid: (h, w) of the model.
        factor: pixels per cell of the grid along each side.

    Raises:
        UserError: the mask has another size, or marks nothing.
        ApiError: nothing says what to redraw; or see `decode_upload`.
    """
    picture = decode_upload(content, "image", limits)
    mask = None if mask_content is None else decode_upload(mask_content, "mask", limits)
    marks = picture if mask is None else mask
    if marks.mode == "RGBA":
        # Only its transparency counts: where it is opaque, a mask may show the picture itself, which may be white.
        marks = marks.getchannel("A").point(lambda value: 255 * (value < 128))
    elif mask is None:
        raise ApiError(
            "expected a mask, or a picture that is transparent where it shall be redrawn, got neither; send a mask",
            param="mask",
        )
    cells = Region(mask=marks).cells(picture.size, grid, factor).numpy()
    size = grid[1] * factor, grid[0] * factor
    small = Image.fromarray(cells.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    return Prepared(ImageOps.fit(on_background(picture), size, Image.Resampling.LANCZOS), small)
