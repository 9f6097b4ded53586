"""Pictures are written as PNG, JPEG or WebP, by their files' endings, with metadata that is read again."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, features

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import dump_json, replace_file
from dalle_mini_impl.util.images import open_image, reason_unreadable
from dalle_mini_impl.util.picture_metadata import (
    PICTURE_FORMATS,
    RECORD_KEY,
    TEXT_KEY,
    exif_comment,
    jpeg_segments,
    read_xmp_record,
    xmp_packets,
    xmp_record,
)
from dalle_mini_impl.util.read_files import MAX_PICTURE_BYTES, read_bytes

JPEG_QUALITY = 95
"""Of 100; colours keep their full resolution. PNG and WebP lose nothing."""
MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels of the longer side that a format holds."""


def save_picture(image: Image.Image, path: str | Path, metadata: dict[str, Any] | None = None, text: str = "") -> Path:
    """Write a picture, whole or not at all, in the format of the file's ending, or as PNG if it has another one.

    Args:
        image: RGB, or RGBA, which JPEG cannot hold.
        path: the file.
        metadata: written inside as JSON, which `read_metadata` reads.
        text: written inside for other programs; see `util.picture_metadata.infotext`.

    Returns:
        The path.

    Raises:
        UserError: the format cannot hold the picture, or the file cannot be written.
    """
    content = picture_bytes(image, Path(path).suffix, metadata, text)
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def picture_bytes(
    image: Image.Image,
    ending: str = ".png",
    metadata: dict[str, Any] | None = None,
    text: str = "",
    quality: int | None = None,
) -> bytes:
    """The content of the file that `save_picture` writes.

    Args:
        image: see `save_picture`, as all but `ending`.
        ending: with its dot.
        metadata: written inside as JSON.
        text: written inside for other programs.
        quality: of JPEG and WebP, 0 to 100; None is `JPEG_QUALITY`, and a WebP that loses nothing.

    Raises:
        UserError: the format cannot hold the picture.
    """
    name = PICTURE_FORMATS.get(ending.lower(), "PNG")
    _check_format(image, name)
    record = None if metadata is None else dump_json(metadata)
    options: dict[str, Any] = {}
    if name == "PNG":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        if record is not None:
            info.add_itxt(RECORD_KEY, record)
        if text:
            info.add_text(TEXT_KEY, text)
    elif text:
        options["exif"] = exif_comment(text)
    if name == "JPEG":
        options |= {"quality": JPEG_QUALITY if quality is None else quality, "subsampling": 0}
        options |= {"extra": jpeg_segments(xmp_record(record))} if record is not None else {}
    elif name == "WEBP":
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
        options |= {"xmp": xmp_record(record)} if record is not None else {}
    content = io.BytesIO()
    image.save(content, name, **options)
    return content.getvalue()


def check_transparency(ending: str) -> None:
    """Refuse transparent pictures, before they are made, in files with this ending.

    Raises:
        UserError: it is that of JPEG.
    """
    if PICTURE_FORMATS.get(ending.lower()) == "JPEG":
        raise UserError(
            "expected .png or .webp for pictures with transparency, got JPEG, which has none; choose another ending, "
            "or leave transparency out (--no-transparent)"
        )


def _check_format(image: Image.Image, name: str) -> None:
    """Refuse what a format cannot hold.

    Raises:
        UserError: as `check_transparency`, or a side is too long, or Pillow was built without the format.
    """
    if image.mode == "RGBA":
        check_transparency(f".{name}")
    longest = MAX_SIDE.get(name)
    if longest and max(image.size) > longest:
        raise UserError(
            f"expected at most {longest} pixels a side for {name}, got {image.width} x {image.height}; write .png"
        )
    if name == "WEBP" and not features.check("webp"):
        raise UserError("expected a Pillow with WebP, got one that was built without it; write .png or .jpg")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that `save_picture` put into a picture.

    Raises:
        UserError: the file is not a readable picture, or has no metadata of this package.
    """
    try:
        content = read_bytes(path, MAX_PICTURE_BYTES)
    except Exception as error:
        raise _no_picture(error, path) from error
    return parse_metadata(content, path)


def parse_metadata(content: bytes, path: str | Path) -> dict[str, Any]:
    """As `read_metadata`, of the content of a file, which errors call `path`."""
    try:
        with open_image(io.BytesIO(content)) as image:
            image.load()
            packets = xmp_packets(getattr(image, "applist", ()))
            if image.format == "WEBP" and "xmp" in image.info:
                packets = iter([image.info["xmp"]])
            text = image.info.get(RECORD_KEY) or read_xmp_record(packets)
    except Exception as error:
        raise _no_picture(error, path) from error
    if text is None:
        raise UserError(f"{path} carries no settings; give a picture made by dalle sample")
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the settings in {path} are damaged ({error}); give a picture made by dalle sample") from error


def _no_picture(error: Exception, path: str | Path) -> UserError:
    reason = reason_unreadable(error, path)
    return UserError(f"{path} is not a readable picture ({reason}); give one made by dalle sample")
