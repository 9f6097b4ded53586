"""Picture files, conversion to pixels and back, contact sheets."""

import io
import os
import re
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.fonts import label_font
from dalle_mini_impl.util.images import (
    _can_read,
    contact_sheet,
    on_background,
    open_picture,
    picture_kind,
    pixel_count,
    to_images,
    to_pixels,
    unreadable_format,
)
from dalle_mini_impl.util.save_picture import read_metadata
from dalle_mini_impl.util.svg import SVG_SIDE


def noise(width, height, seed=0, bands=3):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, bands), dtype=np.uint8))


def array(image):
    return np.asarray(image)


def test_to_pixels_and_back_is_exact_for_every_value():
    values = np.stack([np.roll(np.arange(256), shift) for shift in (0, 85, 170)], -1).astype(np.uint8)
    picture = Image.fromarray(values.reshape(16, 16, 3))
    assert np.array_equal(array(to_images(to_pixels([picture], 16))[0]), array(picture))


def test_pixels_are_channels_first_and_in_range():
    picture = Image.new("RGB", (7, 5), (255, 0, 51))
    picture.putpixel((6, 0), (0, 255, 0))
    pixels = to_pixels([picture, noise(7, 5)], (5, 7))
    assert pixels.shape == (2, 3, 5, 7)
    assert pixels.dtype == torch.float32
    assert pixels[0, :, 4, 0].tolist() == pytest.approx([1, -1, -0.6])
    assert pixels[0, :, 0, 6].tolist() == [-1, 1, -1]


def test_values_outside_are_clamped():
    pixels = torch.tensor([-9.0, 9.0, 0.0])[None, :, None, None].expand(1, 3, 2, 3).double()
    assert array(to_images(pixels)[0])[0, 0].tolist() == [0, 255, 128]


def test_empty_batches_are_converted():
    assert to_pixels([], (3, 5)).shape == (0, 3, 3, 5)
    assert to_images(torch.zeros(0, 3, 3, 5)) == []


def test_wide_picture_is_cropped_around_its_middle():
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste("blue", (10, 0, 20, 10))
    pixels = to_pixels([picture], 10)
    assert bool((pixels[0, 2, :, 2:8] > 0.9).all())
    assert bool((pixels[0, 0, :, 2:8] < -0.9).all())


def test_transparent_parts_become_white():
    picture = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    picture.putpixel((2, 0), (0, 0, 0, 51))
    flat = on_background(picture)
    assert flat.mode == "RGB"
    assert flat.getpixel((0, 0)) == (255, 255, 255)
    assert flat.getpixel((1, 0)) == (10, 20, 30)
    assert flat.getpixel((2, 0)) == (204, 204, 204)
    assert on_background(picture, "lime").getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA", "RGB", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    picture = Image.new("RGB", (5, 3), "white").convert(mode)
    assert on_background(picture).mode == "RGB"
    assert bool((to_pixels([picture], 3) == 1).all())


def test_transparent_palette_entry_becomes_white():
    picture = Image.new("P", (3, 1), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((0, 0), 0)
    picture.info["transparency"] = 0
    assert [on_background(picture).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


# --- contact sheets


@pytest.mark.parametrize(
    ("count", "columns", "rows_columns"),
    [
        (1, 0, (1, 1)),
        (2, 0, (1, 2)),
        (3, 0, (2, 2)),
        (5, 0, (2, 3)),
        (7, 0, (3, 3)),
        (13, 0, (4, 4)),
        (5, 2, (3, 2)),
        (3, 11, (1, 3)),
        (7, 7, (1, 7)),
        (7, 1, (7, 1)),
    ],
)
def test_sheet_has_a_cell_for_every_picture(count, columns, rows_columns):
    pictures = [Image.new("RGB", (11, 7), (number, 1, 2)) for number in range(count)]
    sheet = contact_sheet(pictures, columns, gap=3)
    rows, wide = rows_columns
    assert sheet.size == (3 + wide * 14, 3 + rows * 10)
    corners = [sheet.getpixel((3 + n % wide * 14, 3 + n // wide * 10)) for n in range(count)]
    assert corners == [(number, 1, 2) for number in range(count)]
    assert array(sheet).reshape(-1, 3).tolist().count([255, 255, 255]) == sheet.width * sheet.height - count * 77


def test_cells_have_the_size_of_the_largest_picture():
    sheet = contact_sheet([Image.new("RGB", (5, 13)), Image.new("RGBA", (11, 3))], columns=2, gap=2)
    assert sheet.size == (2 + 2 * 13, 2 + 15)


def test_label_is_written_under_its_picture_only():
    pictures = [Image.new("RGB", (40, 20), "red") for _ in range(2)]
    bare, one = contact_sheet(pictures, 2), contact_sheet(pictures, 2, ["", "0.123"])
    assert one.width == bare.width
    assert one.height > bare.height
    strip = array(one)[24:]
    assert strip[:, :44].min() == 255
    assert strip[:, 48:88].min() < 128
    assert strip[:, 88:].min() == 255


def test_long_label_is_cut_to_its_cell():
    pictures = [Image.new("RGB", (40, 20), "red") for _ in range(3)]
    sheet = array(contact_sheet(pictures, 3, ["", "a very long prompt about hearts " * 9, ""]))
    assert sheet[25:, :48].min() == 255
    assert sheet[25:, 90:].min() == 255
    assert sheet[25:, 48:90].min() < 128


@pytest.mark.parametrize("label", ["two\nlines", "ein\r\nHerz", "红心", "🦄", "\t", "قلب"])
def test_any_text_can_be_a_label(label):
    assert contact_sheet([Image.new("RGB", (50, 20))], 1, [label]).width == 58


@pytest.mark.parametrize("text", ["W", "WWW", "il.j' " * 9, "AVToWY, a" * 30, "日本é🦄a " * 9, "e\u0301a" * 50, ""])
@pytest.mark.parametrize("width", [8, 20, 64, 112])
def test_label_keeps_the_longest_part_that_fits(text, width, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.util.fonts._font_files", tuple)  # so that parts have the font of the whole
    picture = Image.new("RGB", (width, 5))
    label = " ".join(text.split())
    font, label = label_font(label, max(9, min(14, width // 8)))
    pen = ImageDraw.Draw(picture)
    while label and pen.textlength(label, font=font) > width:  # slow and obvious
        label = label[:-2] + "…" if len(label) > 2 else ""
    assert (
        contact_sheet([picture], labels=[text]).tobytes() == contact_sheet([picture], labels=[label or " "]).tobytes()
    )


def test_time_of_a_label_does_not_grow_with_its_length(monkeypatch):
    measured = []
    length = ImageDraw.ImageDraw.textlength
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "textlength",
        lambda self, text, **font: measured.append(len(text)) or length(self, text, **font),
    )
    contact_sheet([Image.new("RGB", (64, 64))], labels=["a long tale " * 100_000])
    assert sum(measured) < 64 * 10


def test_pictures_of_a_huge_sheet_are_made_smaller(monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.util.images.MAX_SHEET_PIXELS", 100_000)
    sheet = contact_sheet([Image.new("RGB", (200, 100), "red"), *[Image.new("RGB", (20, 10), "lime")] * 47], 8)
    assert 60_000 < (sheet.width - 4) * (sheet.height - 4) <= 100_000
    assert sheet.getpixel((10, 10)) == (255, 0, 0)
    assert sheet.getpixel((8 + sheet.width // 8, 8)) == (0, 255, 0)


def test_sheet_without_pictures_is_refused():
    with pytest.raises(UserError, match="0 pictures"):
        contact_sheet([])


def test_negative_columns_are_refused():
    with pytest.raises(UserError, match="-2"):
        contact_sheet([Image.new("RGB", (3, 3))], columns=-2)


def test_contact_sheet_does_not_change_its_pictures():
    picture = noise(9, 7)
    before = array(picture).copy()
    sheet = contact_sheet([picture, picture], 2, gap=1)
    assert np.array_equal(array(picture), before)
    assert np.array_equal(array(sheet)[1:8, 11:20], before)


# --- kinds of files


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "readable"),
        ("A photo.JPE", "readable"),
        ("scan.ppm", "readable"),
        ("old.tga", "readable"),
        ("icon.ico", "readable"),
        ("IMG.001.jfif", "readable"),
        ("new.jxl", "unreadable"),
        ("DSC1.NEF", "unreadable"),
        ("layers.psd", "unreadable"),
        ("a.txt", "other"),
        ("png", "other"),
        (".png", "other"),
        ("a.png.bak", "other"),
    ],
)
def test_kind_of_a_file_follows_from_its_ending(name, kind):
    assert picture_kind(name) == kind


def test_drawings_are_readable_where_their_library_is_installed(monkeypatch, without_svg):
    assert picture_kind("drawing.svg") == picture_kind("drawing.SVGZ") == "unreadable"
    assert re.search(
        r"unreadable format: \.svg pictures need an extra: .*pip install resvg-py", unreadable_format("a.SVG")
    )
    monkeypatch.setattr("dalle_mini_impl.util.images.svg_installed", lambda: True)
    _can_read.cache_clear()
    assert picture_kind("drawing.svg") == picture_kind("drawing.SVGZ") == "readable"


def test_reason_of_an_unreadable_format_says_what_to_do():
    assert unreadable_format("x/a.PSD") == "unreadable format: .psd pictures cannot be read; save them as PNG or JPEG"
    assert "pip install pillow-heif" in unreadable_format("a.heic")


# --- decoding files


def test_photos_are_rotated_upright_and_animations_give_their_first_frame(tmp_path):
    photo, exif = Image.new("RGB", (13, 7), "red"), Image.Exif()
    photo.paste("blue", (0, 0, 3, 3))
    exif[0x0112] = 6  # orientation tag: rotate clockwise by 90 degrees
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    upright = open_picture(tmp_path / "photo.jpg")
    assert upright.size == (7, 13)
    assert upright.getpixel((5, 1))[2] > 200
    assert upright.getpixel((1, 1))[0] > 200
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("lime", "red")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "moving.gif").getpixel((2, 2)) == (0, 255, 0)


@pytest.mark.parametrize(
    ("mode", "ending", "colour", "expected"),
    [
        ("CMYK", "jpg", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", "tif", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", "png", 0x8000, (128, 128, 128)),
        ("I;16", "tif", 0x8000, (128, 128, 128)),
        ("P", "gif", 3, (30, 40, 50)),
        ("P", "png", 3, (30, 40, 50)),
        ("1", "png", 1, (255, 255, 255)),
        ("LA", "png", (77, 50), (77, 77, 77, 50)),
    ],
)
def test_every_file_format_and_mode_becomes_rgb_or_rgba(tmp_path, mode, ending, colour, expected):
    picture = Image.new(mode, (16, 16), colour)
    if mode == "P":
        picture.putpalette([9] * 9 + [30, 40, 50])
    picture.save(tmp_path / f"picture.{ending}")
    assert open_picture(tmp_path / f"picture.{ending}").getpixel((4, 4)) == expected


def test_grey_with_16_bits_is_not_clipped_to_white():
    assert on_background(Image.new("I;16", (3, 2), 0x4000)).getpixel((1, 1)) == (64, 64, 64)


def test_unreadable_picture_is_refused_in_one_line(tmp_path, monkeypatch):
    noise(64, 64).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    header = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x0dIHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(header + struct.pack(">II", zlib.crc32(header[12:]), 9) + b"IDAT")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    noise(64, 64).save(tmp_path / "fine.png")
    for name, message in (
        ("cut.jpg", "is not a readable picture .*truncated"),
        ("bomb.png", "is too large .*1600000000 pixels"),
        ("empty.png", "is not a readable picture"),
        ("text.png", "is not a readable picture"),
        ("absent.png", "is not a readable picture"),
        ("", "is not a readable picture"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 63)  # above it, but not twice: Pillow would only warn
    with pytest.raises(UserError, match="too large"):
        open_picture(tmp_path / "fine.png")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 51, 255], [0, 51, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([-0.01, 0.5, 1.01], [0, 128, 255]),
        ([np.nan, 0.2, 1], [0, 51, 255]),
        ([np.inf, 0.2, -np.inf], [255, 51, 0]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([0, 5e5, 1e6], [0, 128, 255]),
    ],
)
def test_floats_are_scaled_by_what_white_is(tmp_path, values, expected):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tiff")
    picture = open_picture(tmp_path / "a.tiff")
    assert picture.mode == "RGB"
    assert [picture.getpixel((x, 0))[0] for x in range(3)] == expected


def test_grey_with_16_bits_is_scaled_the_same_whatever_the_picture_holds(tmp_path):
    for values in ([0, 255, 1000], [0, 32768, 65535]):
        Image.fromarray(np.array([values], np.uint16)).save(tmp_path / "a.png")
        assert [open_picture(tmp_path / "a.png").getpixel((x, 0))[0] for x in range(3)] == [v >> 8 for v in values]
    Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], np.int32)).save(tmp_path / "a.tiff")
    assert [open_picture(tmp_path / "a.tiff").getpixel((x, 0))[0] for x in range(3)] == [0, 64, 127]


def test_transparent_value_of_grey_with_16_bits_is_kept(tmp_path):
    Image.fromarray(np.array([[7, 0x8000]], np.uint16)).save(tmp_path / "a.png", transparency=7)
    picture = open_picture(tmp_path / "a.png")
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0, 0), (128, 128, 128, 255)]


@pytest.mark.parametrize(
    "ending", ["ppm", "tga", "jp2", "ico", "jpe", "jfif", "avif", "dib", "pcx", "apng", "mpo", "psd"]
)
def test_rarer_formats_are_read(tmp_path, ending):
    picture = Image.new("RGB", (32, 32), (200, 30, 40))
    path = tmp_path / f"a.{ending}"
    if ending == "psd":
        pixels = b"".join(bytes([value]) * 1024 for value in (200, 30, 40))
        path.write_bytes(b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 32, 32, 8, 3) + bytes(12) + bytes(2) + pixels)
    else:
        formats = {"jpe": "JPEG", "jfif": "JPEG", "jp2": "JPEG2000", "apng": "PNG"}
        picture.save(path, formats.get(ending, ending.upper()))
    assert all(abs(a - b) <= 3 for a, b in zip(open_picture(path).getpixel((9, 9))[:3], (200, 30, 40), strict=True))


@pytest.mark.parametrize("ending", ["pgm", "pbm"])
def test_grey_formats_are_read(tmp_path, ending):
    Image.new("L" if ending == "pgm" else "1", (9, 9), 255).save(tmp_path / f"a.{ending}", "PPM")
    assert open_picture(tmp_path / f"a.{ending}").getpixel((4, 4)) == (255, 255, 255)


def test_formats_that_start_other_programs_are_not_read(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UserError, match="no known format"):
        open_picture(tmp_path / "a.png")


def test_unreadable_formats_are_named(tmp_path):
    (tmp_path / "a.jxl").write_text("jxl")
    with pytest.raises(UserError, match=r"\.jxl pictures cannot be read"):
        open_picture(tmp_path / "a.jxl")


DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="10" height="10" fill="lime"/></svg>'
)


def test_missing_extra_for_drawings_is_named(tmp_path, without_svg):
    (tmp_path / "a.svg").write_text(DRAWING)
    with pytest.raises(UserError, match="pip install resvg-py"):
        open_picture(tmp_path / "a.svg")


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_drawings_are_read_whatever_their_name(tmp_path, name):
    pytest.importorskip("resvg_py")
    (tmp_path / name).write_text(DRAWING)
    picture = open_picture(tmp_path / name)
    assert picture.size == (SVG_SIDE, SVG_SIDE // 2)
    assert [picture.getpixel((x, 9)) for x in (9, 500)] == [(0, 255, 0, 255), (0, 0, 0, 0)]
    assert pixel_count(io.BytesIO(DRAWING.encode())) >= picture.width * picture.height
    (tmp_path / name).write_text(DRAWING.replace("</svg>", ""))
    with pytest.raises(UserError, match="no valid XML"):
        open_picture(tmp_path / name)
    with pytest.raises(UserError, match="is not a readable picture"):
        read_metadata(tmp_path / name)


def test_missing_extra_for_heic_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match="pip install pillow-heif"):
        open_picture(tmp_path / "a.heic")


def test_heic_is_read_with_its_extra(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 40))).save(tmp_path / "a.heic")
    picture = open_picture(tmp_path / "a.heic")
    assert picture.size == (64, 48)
    assert all(abs(a - b) <= 4 for a, b in zip(picture.getpixel((9, 9)), (200, 30, 40), strict=True))


def test_pipes_and_devices_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for path in (tmp_path / "x.png", tmp_path / "zero.png", "/dev/zero"):
        with pytest.raises(UserError, match="not a readable picture"):
            open_picture(path)
        with pytest.raises(UserError, match="not a readable picture"):
            read_metadata(path)


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_large_picture_inside_an_icon_is_refused(tmp_path, monkeypatch):
    large = io.BytesIO()
    Image.new("RGB", (64, 64)).save(large, "PNG")
    content = large.getvalue()
    entry = struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 24, len(content), 22)
    (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + content)
    assert open_picture(tmp_path / "a.ico").size == (64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 63)
    with pytest.raises(UserError, match="too large"):
        open_picture(tmp_path / "a.ico")
