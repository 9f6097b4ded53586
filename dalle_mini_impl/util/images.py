"""Picture files and their conversion to the pixels of the models and back; contact sheets.

Pictures are PIL images outside the models and float tensors in [-1, 1] inside them. `to_pixels` and `to_images` are the
only conversions between the two.
"""

import functools
import importlib.util
import io
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError, features

from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.fonts import label_baseline, label_font
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.read_files import MAX_PICTURE_BYTES, read_bytes
from dalle_mini_impl.util.svg import SVG_ENDINGS, SVG_SIDE, SVG_START, draw_svg, is_svg, need_svg, svg_installed

PICTURE_ENDINGS = frozenset(
    (
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
        ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".jp2", ".j2k", ".jpx", ".ico",
        ".pcx", ".svg", ".svgz",
    )
)  # fmt: skip
"""File name endings, in lower case, of the pictures that folders are searched for."""
UNREADABLE_ENDINGS = frozenset(
    (
        ".jxl", ".psd", ".psb", ".xcf", ".kra", ".ai", ".eps", ".ps", ".pdf", ".wmf", ".emf", ".exr", ".hdr", ".bpg",
        ".djvu", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf",
        ".rw2", ".raf", ".pef", ".3fr", ".iiq", ".x3f", ".erf", ".kdc", ".mrw", ".rwl", ".srw",
    )
)  # fmt: skip
"""File name endings, in lower case, of pictures that this program cannot read: layers, pages, raw photos."""
PICTURE_FEATURES = {".webp": "webp", ".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000", ".jpx": "jpg_2000"}
"""File name ending -> Pillow's name of the library that it needs, which some builds of Pillow lack."""
HEIF_ENDINGS = frozenset((".heic", ".heif"))
"""File name endings of the pictures that need pillow-heif."""
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
"""Bytes 8 to 12 of the files that pillow-heif reads."""
COMMON_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM")
"""Formats that are tried first, by Pillow's names."""
OTHER_FORMATS = (
    "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "MPO", "PSD", "QOI", "PCX", "SGI", "ICNS", "CUR", "DDS", "DIB", "XBM",
    "SUN", "TGA",
)  # fmt: skip
"""The other formats that are read, whatever a file's name; those that start other programs, such as EPS, are not."""
WHITE_VALUES = (1.0, 255.0, 65535.0)
"""What white may be in pictures whose values are floats."""
PictureKind = Literal["readable", "unreadable", "other"]
"""What a file is by its ending: a picture that can be read here, a picture that cannot, anything else."""
_WARNING_FILTERS = threading.Lock()
"""Held while the filters of `warnings` are changed, which all threads share."""


def picture_kind(path: str | Path) -> PictureKind:
    """Tell by a file's ending whether it is a picture that can be read, a picture that cannot, or anything else.

    `.heic` and `.heif` are readable where pillow-heif is installed, `.svg` and `.svgz` where resvg-py is, and `.avif`,
    `.webp` and `.jp2` where Pillow was built with their libraries. `unreadable_format` says why one is not.
    """
    ending = Path(path).suffix.lower()
    if ending in UNREADABLE_ENDINGS:
        return "unreadable"
    if ending in PICTURE_ENDINGS:
        return "readable" if _can_read(ending) else "unreadable"
    return "other"


def is_drawing(path: str | Path) -> bool:
    """Tell by a file's ending, or by an ending alone, whether it is an SVG file."""
    return str(path).lower().endswith(tuple(SVG_ENDINGS))


def unreadable_format(path: str | Path) -> str:
    """Why a picture of the kind `unreadable` cannot be read, as `category: what to do`, for a `SkipLog`."""
    ending = Path(path).suffix.lower()
    if ending in HEIF_ENDINGS:
        return f"unreadable format: {ending} pictures need an extra: {need_extra('pillow-heif', 'heif')}"
    if ending in SVG_ENDINGS:
        return f"unreadable format: {ending} pictures need an extra: {need_svg()}"
    return f"unreadable format: {ending} pictures cannot be read; save them as PNG or JPEG"


@functools.cache
def _can_read(ending: str) -> bool:
    if ending in HEIF_ENDINGS:
        return importlib.util.find_spec("pillow_heif") is not None
    if ending in SVG_ENDINGS:
        return svg_installed()
    return ending not in PICTURE_FEATURES or bool(features.check(PICTURE_FEATURES[ending]))


def decode_image(file: Path | BinaryIO) -> Image.Image:
    """Decode a whole picture file, rotated upright, as RGB, or as RGBA where it has transparency.

    An animation gives its first frame, a drawing (SVG) a picture of `SVG_SIDE` pixels on its longer side.

    Raises:
        UserError: it needs an extra that is not installed, or the path is no regular file of a picture's size.
        Exception: Pillow's decoders raise almost any exception on damaged data. A picture above Pillow's limit on
            pixels raises `DecompressionBombWarning` or `DecompressionBombError`.
    """
    if isinstance(file, Path):
        file = io.BytesIO(read_bytes(file, MAX_PICTURE_BYTES))
    with open_image(file) as image:
        image.load()
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            # Icons say in their first bytes how large they are, and can hold a larger picture.
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are too many")
        return to_rgb_or_rgba(ImageOps.exif_transpose(image))


def open_image(file: BinaryIO) -> Image.Image:
    """Open a picture file of any format that is read here, without decoding its pixels.

    Raises:
        Exception: as `decode_image`.
    """
    try:
        return _open_as(file, COMMON_FORMATS)
    except UnidentifiedImageError:
        Image.init()
    if _is_svg(file):
        return draw_svg(file.read())
    start = file.read(12)
    file.seek(0)
    formats = [name for name in OTHER_FORMATS if name in Image.OPEN]
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        try:
            import pillow_heif
        except ImportError as error:
            raise need_extra("pillow-heif", "heif") from error
        pillow_heif.register_heif_opener()
        formats.insert(0, "HEIF")
    return _open_as(file, formats)


def _is_svg(file: BinaryIO) -> bool:
    file.seek(0)
    start = file.read(SVG_START)
    file.seek(0)
    return is_svg(start)


def _open_as(file: BinaryIO, formats: list[str] | tuple[str, ...]) -> Image.Image:
    file.seek(0)
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(file, formats=formats)


def pixel_count(file: BinaryIO) -> int:
    """Pixels of a picture according to its first bytes; 0 where these cannot be understood, or name too many."""
    try:
        if _is_svg(file):
            return SVG_SIDE**2
        with open_image(file) as image:
            return image.width * image.height
    except Exception:  # decoding raises it again, and has it reported
        return 0


def open_picture(path: str | Path) -> Image.Image:
    """Decode a picture file as `decode_image` does.

    Raises:
        UserError: the file is missing, damaged, not a picture, or above Pillow's limit on pixels.
    """
    try:
        return decode_image(Path(path))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is too large ({error}); make it smaller first") from error
    except Exception as error:
        reason = reason_unreadable(error, path)
        raise UserError(f"{path} is not a readable picture ({reason}); give a PNG or JPEG file") from error


def reason_unreadable(error: Exception, path: str | Path) -> str:
    """Why a picture cannot be decoded, in one line."""
    if not isinstance(error, UnidentifiedImageError):
        return " ".join((str(error) or type(error).__name__).split())
    if picture_kind(path) == "unreadable":
        return unreadable_format(path)
    return "no known format, or cut off within its first bytes"


def to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, or to RGBA where it has transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey_with_8_bits(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _grey_with_8_bits(image: Image.Image) -> Image.Image:
    """Convert grey values with more than 8 bits; direct conversion would clip them to white, or to black."""
    opaque: Any = image.info.get("transparency")
    if image.mode == "F":
        values = np.array(image)
        finite = np.isfinite(values)
        values[~finite] = np.where(values[~finite] > 0, np.inf, 0)  # not-a-number becomes black
        largest = float(values[finite].max(initial=0))
        # Files do not say which value is white. Twice as much leaves room for values that resizing made too large.
        white = next((limit for limit in WHITE_VALUES if largest <= 2 * limit), largest)
        grey: np.ndarray = (np.clip(values / white, 0, 1) * 255).round()
    else:
        values = np.array(image.convert("I"))
        # 16 bits, or 32 where a value is larger; those above half of 32 bits read as negative.
        grey = values.view(np.uint32) >> 24 if values.max(initial=0) > 0xFFFF else np.clip(values, 0, None) >> 8
    alpha = None
    if isinstance(opaque, int) and image.mode != "F":
        alpha = Image.fromarray(np.where(values == opaque, 0, 255).astype(np.uint8))
    converted = Image.fromarray(grey.astype(np.uint8))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def on_background(image: Image.Image, colour: str = "white") -> Image.Image:
    """Convert a picture to RGB, with `colour` behind its transparent parts."""
    image = to_rgb_or_rgba(image)
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def to_pixels(images: Sequence[Image.Image], size: int | tuple[int, int]) -> torch.Tensor:
    """Crop pictures around their middle to the given proportions, resize them, and convert them to pixels.

    Args:
        images: B pictures of any size and mode; transparent parts become white.
        size: side of a square, or `(H, W)`, in pixels.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows = []
    for image in images:
        fitted = ImageOps.fit(on_background(image), (width, height), Image.Resampling.LANCZOS)
        rows.append(np.array(fitted, dtype=np.uint8))
    pixels = torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, height, width, 3)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Round pixels in [-1, 1] to uint8 from 0 to 255, on their device; values outside the range are clamped."""
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Convert pixels (B, 3, H, W), as for `to_bytes` or uint8, to B RGB pictures."""
    values = (pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)).cpu()
    return [Image.fromarray(picture) for picture in values.permute(0, 2, 3, 1).contiguous().numpy()]


def enlarge(images: Sequence[Image.Image], factor: int) -> list[Image.Image]:
    """Make pictures larger by a whole factor: each pixel becomes a square, so that none of them is lost or changed.

    Raises:
        UserError: the factor is below 1, or the pictures would not fit into the memory.
    """
    if factor < 1:
        raise UserError(f"expected a zoom of 1 or more, got {factor}; pictures are not made smaller")
    if factor == 1:
        return list(images)
    pixels = sum(image.width * image.height for image in images) * factor**2
    check_memory(3 * pixels, f"{len(images)} pictures, enlarged {factor} times", "choose a smaller zoom")
    size = [(image.width * factor, image.height * factor) for image in images]
    return [image.resize(to, Image.Resampling.NEAREST) for image, to in zip(images, size, strict=True)]


MAX_SHEET_PIXELS = 80_000_000
"""Pixels of the largest contact sheet without its labels; the pictures of a larger one are made smaller. Pillow opens
pictures of up to 89 million pixels."""


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int = 0,
    labels: Sequence[str] = (),
    gap: int = 4,
    *,
    transparent: bool = False,
) -> Image.Image:
    """Arrange pictures in rows on a white sheet, or a transparent one.

    Args:
        images: at least one; all cells are as large as the largest picture.
        columns: pictures per row; 0 makes the sheet about square.
        labels: text under each picture, cut to the cell's width; empty for none.
        gap: space between cells in pixels.
        transparent: keep transparency instead of putting everything on white.

    Returns:
        The sheet, RGB or RGBA. If it would have more than `MAX_SHEET_PIXELS`, the pictures in it are made smaller.

    Raises:
        UserError: there is no picture, or `columns` is negative.
    """
    if not images or columns < 0:
        raise UserError(
            f"a contact sheet needs at least 1 picture and 0 (about square) or more columns, "
            f"got {len(images)} pictures and {columns} columns; change them"
        )
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    if columns * rows * (width + gap) * (height + gap) > MAX_SHEET_PIXELS:
        while columns * rows * (width + gap) * (height + gap) > MAX_SHEET_PIXELS and max(width, height) > 1:
            width, height = max(1, width * 9 // 10), max(1, height * 9 // 10)
        images = [image.convert("RGBA") if transparent else on_background(image) for image in images]
        for image in images:
            image.thumbnail((width, height), Image.Resampling.LANCZOS)
    font_size = max(9, min(14, width // 8))
    text_height = int(font_size * 1.4) if labels else 0
    cell_width, cell_height = width + gap, height + gap + text_height
    size = (columns * cell_width + gap, rows * cell_height + gap)
    sheet = Image.new("RGBA", size) if transparent else Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left = gap + number % columns * cell_width
        top = gap + number // columns * cell_height
        sheet.paste(image if transparent else on_background(image), (left, top))
        if number < len(labels):
            label = " ".join(labels[number].split())[: 4 * width]  # hardly a character is narrower than a pixel
            font, label = label_font(label, font_size)
            text = _shorten(label, functools.partial(pen.textlength, font=font), width)
            place = (left, top + height + 1 + label_baseline(font_size))
            pen.text(place, text, fill="black", font=font, anchor="ls")
    return sheet


def _shorten(text: str, length: Callable[[str], float], width: int) -> str:
    """Cut text until its `length` in pixels is at most `width`."""
    if length(text) <= width:
        return text
    # Longer parts are wider, so the longest that fits lies between one that does and one that does not.
    fits, too_long = 0, len(text) - 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if length(text[:middle] + "…") <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits] + "…" if fits else ""
