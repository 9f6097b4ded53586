"""Fitting pictures of any proportions into the model's frame."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from dalle_mini_impl.data.fit import FitCounts, fit_picture, ground_of

RED, CLEAR = (200, 20, 30, 255), (0, 0, 0, 0)


def cut_out(width, height, box=None, colour=RED, ground=CLEAR):
    """A box of one colour on a ground; without a box, a ball that touches all four sides."""
    image = Image.new("RGBA", (width, height), ground)
    pen = ImageDraw.Draw(image)
    if box is None:
        pen.ellipse((0, 0, width - 1, height - 1), fill=colour)
    else:
        pen.rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=colour)
    return image


def photo(width, height, seed=0):
    """Large patches of many colours, up to every edge."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def as_jpeg(image, quality=60):
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=quality)
    return Image.open(data)


def drawn_box(image, ground=CLEAR):
    """The box around all that differs clearly from a ground."""
    pixels = np.asarray(image).astype(int)
    drawn = pixels[..., 3] > 100 if ground == CLEAR else abs(pixels - np.array(ground)).max(-1) > 60
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


# --- the ground


def test_ground_is_transparency_or_one_plain_colour():
    assert ground_of(np.asarray(cut_out(60, 40))).colour is None
    assert ground_of(np.asarray(cut_out(60, 40, (0, 10, 60, 30), ground=(250, 240, 230, 255)))).colour == (
        250,
        240,
        230,
    )
    assert ground_of(np.asarray(photo(60, 40).convert("RGBA"))) is None


def test_picture_frame_is_a_cut_out_though_its_border_is_opaque():
    frame = photo(60, 40).convert("RGBA")
    frame.paste(CLEAR, (10, 10, 50, 30))
    assert ground_of(np.asarray(frame)).colour is None


def test_some_transparent_pixels_are_no_ground():
    image = photo(200, 100).convert("RGBA")
    image.putpixel((0, 0), CLEAR)
    assert ground_of(np.asarray(image)) is None


@pytest.mark.parametrize("quality", [20, 90])
def test_noise_of_jpeg_leaves_a_ground_plain(quality):
    image = as_jpeg(cut_out(90, 60, (0, 20, 90, 40), ground=(235, 240, 250, 255)), quality)
    ground = ground_of(np.asarray(image.convert("RGBA")))
    assert np.abs(np.array(ground.colour) - (235, 240, 250)).max() <= 4


# --- what each setting does

SHAPES = [(90, 30), (30, 90), (67, 61), (300, 10), (10, 300), (1200, 40), (3, 3), (1, 1), (1, 700)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("frame", [(48, 48), (35, 53)])
def test_nothing_drawn_is_cut_off_and_proportions_are_kept(size, frame):
    image = cut_out(*size, (0, 0, *size))
    image.putalpha(Image.new("L", size, 127))  # a cut-out that is nowhere opaque
    fitted = fit_picture(image, frame, "pad")
    assert fitted.image.size == (frame[1], frame[0])
    assert fitted.lost == 0
    scale = min(frame[1] / size[0], frame[0] / size[1])
    left, top, right, bottom = drawn_box(fitted.image)
    assert right - left == pytest.approx(max(1, size[0] * scale), abs=1)
    assert bottom - top == pytest.approx(max(1, size[1] * scale), abs=1)
    assert abs(left - (frame[1] - right)) <= 1
    assert abs(top - (frame[0] - bottom)) <= 1


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("ground", [CLEAR, (250, 250, 245, 255)])
def test_auto_pads_what_has_a_ground(size, ground):
    fitted = fit_picture(cut_out(*size, ground=ground), (48, 48), "auto")
    assert fitted.lost == 0
    if max(size) > 3:
        left, top, right, bottom = drawn_box(fitted.image, ground)
        assert max(right - left, bottom - top) >= 42
        assert fitted.change == "padded"


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (1200, 40)])
def test_auto_crops_photographs_around_their_middle(size):
    image = photo(*size)
    fitted = fit_picture(image, (20, 20), "auto")
    expected = ImageOps.fit(image.convert("RGBA"), (20, 20), Image.Resampling.LANCZOS)
    assert fitted.image.tobytes() == expected.tobytes()
    assert fitted.change == "cropped"
    assert fitted.lost == pytest.approx(1 - min(size) / max(size), abs=0.01)


def test_stretch_changes_proportions_alone():
    fitted = fit_picture(cut_out(90, 30, (30, 10, 60, 20)), (45, 60), "stretch")
    assert (fitted.change, fitted.lost) == ("stretched", 0)
    assert drawn_box(fitted.image) == pytest.approx((20, 15, 40, 30), abs=1)


@pytest.mark.parametrize("fit", ["auto", "pad", "crop", "stretch"])
def test_pictures_with_the_frames_proportions_are_whole(fit):
    for image in (cut_out(80, 120), photo(80, 120).convert("RGBA")):
        fitted = fit_picture(image, (48, 32), fit)
        assert (fitted.change, fitted.lost) == ("whole", 0)
        assert fitted.image.tobytes() == image.resize((32, 48), Image.Resampling.LANCZOS).tobytes()


def test_crop_tells_the_share_of_the_drawn_area_that_is_lost():
    # 20 of 100 columns are drawn at the left edge, and 20 in the middle, of which the frame shows the latter.
    image = cut_out(100, 40, (0, 10, 20, 30))
    image.paste(RED, (40, 10, 60, 30))
    assert fit_picture(image, (40, 40), "crop").lost == pytest.approx(0.5)
    empty_sides = fit_picture(cut_out(100, 40, (40, 10, 60, 30)), (40, 40), "crop")
    assert (empty_sides.change, empty_sides.lost) == ("trimmed", 0)


# --- padding


@pytest.mark.parametrize("fit", ["auto", "pad"])
def test_plain_ground_is_continued_in_its_colour(fit):
    ground = (240, 230, 200, 255)
    fitted = np.asarray(fit_picture(cut_out(90, 30, ground=ground), (60, 60), fit).image).astype(int)
    assert np.abs(fitted[:15] - ground).max() <= 6
    assert np.abs(fitted[-15:] - ground).max() <= 6


def test_what_is_drawn_at_the_edge_is_not_continued():
    ground = (255, 255, 255, 255)
    fitted = np.asarray(fit_picture(cut_out(120, 40, (50, 0, 70, 40), ground=ground), (60, 60), "pad").image)
    assert (fitted[:19] == ground).all()
    assert (fitted[:, :21] == ground).all()


def test_padding_shows_no_seam_on_a_shaded_ground():
    shades = (
        np.full((40, 120, 3), 220, np.uint8) + np.linspace(-9, 9, 40).astype(np.int8).astype(np.uint8)[:, None, None]
    )
    fitted = np.asarray(fit_picture(as_jpeg(Image.fromarray(shades), 90), (96, 96), "pad").image).astype(int)
    assert np.abs(np.diff(fitted[..., :3], axis=0)).max() <= 3
    assert fitted[0, 48, 0] == pytest.approx(220, abs=2)


def test_photographs_padded_by_request_get_one_colour():
    fitted = np.asarray(fit_picture(photo(90, 30), (60, 60), "pad").image)
    assert len(np.unique(fitted[0].reshape(-1, 4), axis=0)) == 1


def test_cut_outs_have_no_fringes():
    # The colour of the transparent pixels is green; the picture is enlarged and reduced.
    image = cut_out(60, 40, (10, 10, 50, 30), colour=(255, 0, 0, 255), ground=(0, 255, 0, 0))
    for side in (24, 131):
        pixels = np.asarray(fit_picture(image, (side, side), "auto").image)
        seen = pixels[pixels[..., 3] > 8]
        assert (seen[:, 0] > 240).all()
        assert (seen[:, 1:3] < 15).all()


# --- empty margins


def test_empty_sides_are_left_out_before_a_drawing_is_made_small():
    fitted = fit_picture(cut_out(300, 60, (20, 0, 80, 60)), (60, 60), "auto")
    left, top, right, bottom = drawn_box(fitted.image)
    assert right - left == bottom - top == pytest.approx(54, abs=2)
    assert left >= 2
    assert fit_picture(cut_out(300, 60, (20, 0, 80, 60)), (60, 60), "pad").change == "padded"


def test_drawing_in_a_corner_of_a_large_page_takes_half_of_the_frame():
    page = cut_out(2000, 1500, (1700, 30, 1900, 130), ground=(255, 255, 255, 255))
    left, top, right, bottom = drawn_box(fit_picture(page, (80, 80), "auto").image, (255, 255, 255, 255))
    assert right - left == pytest.approx(40, abs=2.5)
    assert bottom - top == pytest.approx(20, abs=1.5)


def test_margins_of_ordinary_drawings_stay():
    image = cut_out(100, 100, (20, 10, 80, 70))
    fitted = fit_picture(image, (50, 50), "auto")
    assert fitted.change == "whole"
    assert drawn_box(fitted.image) == (10, 5, 40, 35)


def test_faint_and_thin_lines_are_drawn_parts():
    image = Image.new("RGB", (3000, 1000), "white")
    ImageDraw.Draw(image).line((0, 500, 2999, 500), fill=(200, 200, 200), width=2)
    ImageDraw.Draw(image).ellipse((1400, 400, 1600, 600), fill="black")
    fitted = fit_picture(image, (600, 600), "auto")
    pixels = np.asarray(fitted.image.convert("L")).astype(int)
    assert (pixels.min(0) < 252).all()


def test_empty_pictures_are_fitted():
    for image in (Image.new("RGBA", (30, 10)), Image.new("RGB", (30, 10), "white")):
        for fit in ("auto", "pad", "crop", "stretch"):
            fitted = fit_picture(image, (16, 16), fit)
            assert (fitted.image.size, fitted.lost) == ((16, 16), 0)


# --- counts


def test_counts_in_words():
    counts = FitCounts()
    for image in (cut_out(80, 40), photo(80, 70), photo(90, 40), photo(40, 40)):
        counts.add(fit_picture(image, (40, 40), "auto"))
    assert counts.text() == (
        "1 whole, 1 padded, 2 cropped; over a tenth of what is drawn was cut off from 2, over half from 1"
    )
    assert FitCounts().text() == ""
