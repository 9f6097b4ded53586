import dataclasses

import numpy as np
import pytest
import torch
from helpers.models import GRID
from PIL import Image, ImageDraw

from dalle_mini_impl.pipeline.canvas import (
    Region,
    completion_canvas,
    picture_hash,
    squeeze_to_top,
    variation_canvas,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images, to_pixels

SIZE = (40, 24)


def redrawn_rows(region, size=SIZE):
    """The cells to redraw as rows of "." (kept) and "#"."""
    return ["".join(".#"[cell] for cell in row) for row in region.cells(size, GRID, 8).int().tolist()]


def make_mask(size, *boxes, colour="white", ground="black"):
    """A mask of this size with some boxes in another colour."""
    image = Image.new("RGB", size, ground)
    for box in boxes:
        image.paste(colour, box)
    return image


@pytest.fixture(scope="module")
def picture():
    """A smooth picture at the model's size."""
    values = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE, Image.Resampling.BICUBIC)


# --- which cells a region redraws


def test_rows_and_panel_keep_rows_from_the_top():
    assert redrawn_rows(Region(rows=1)) == [".....", "#####", "#####"]
    assert redrawn_rows(Region(rows=2)) == [".....", ".....", "#####"]
    assert redrawn_rows(Region(panel=True)) == [".....", "#####", "#####"]


def test_a_box_redraws_all_cells_it_touches():
    assert redrawn_rows(Region(box=(16, 8, 40, 24))) == [".....", "..###", "..###"]
    assert redrawn_rows(Region(box=(15, 7, 17, 9))) == [".##..", ".##..", "....."]
    assert redrawn_rows(Region(box=(39, 23, 40, 24))) == [".....", ".....", "....#"]
    assert redrawn_rows(Region(box=(0, 0, 40, 24))) == ["#####"] * 3


def test_boxes_are_in_pixels_of_the_picture_whatever_its_size():
    assert redrawn_rows(Region(box=(32, 16, 48, 48)), (80, 48)) == [".....", "..#..", "..#.."]
    # 24 pixels of each side of a picture of 128×48 are cropped away
    assert redrawn_rows(Region(box=(56, 16, 72, 48)), (128, 48)) == [".....", "..#..", "..#.."]
    assert redrawn_rows(Region(box=(0, 0, 25, 48)), (128, 48)) == ["#....", "#....", "#...."]
    with pytest.raises(
        UserError, match="expected something to redraw in the part of the picture that is left after cropping"
    ):
        redrawn_rows(Region(box=(0, 0, 24, 48)), (128, 48))


def test_one_marked_pixel_of_a_large_picture_redraws_its_cell():
    assert redrawn_rows(Region(box=(799, 479, 800, 480)), (4000, 2400)) == ["#....", ".....", "....."]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (make_mask(SIZE, (8, 8, 16, 16), (39, 0, 40, 1)), ["....#", ".#...", "....."]),
        (make_mask(SIZE, (8, 8, 16, 16), colour=(130, 130, 130)), [".....", ".#...", "....."]),
        (make_mask(SIZE, (8, 8, 16, 16), ground=(120, 120, 120)), [".....", ".#...", "....."]),  # noise of a JPEG file
        (make_mask(SIZE, (8, 8, 16, 16)).convert("1"), [".....", ".#...", "....."]),
    ],
)
def test_white_parts_of_a_mask_are_redrawn(image, expected):
    assert redrawn_rows(Region(mask=image)) == expected


def test_transparent_parts_of_a_mask_are_redrawn():
    image = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    ImageDraw.Draw(image).rectangle((16, 0, 23, 7), fill=(0, 0, 0, 0))
    assert redrawn_rows(Region(mask=image)) == ["..#..", ".....", "....."]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({}, "expected one of rows, box, mask and panel, got none; say what to redraw in one way"),
        ({"rows": 1, "panel": True}, "got rows, panel;"),
        ({"rows": 0, "box": (0, 0, 1, 1)}, "got rows, box;"),
    ],
)
def test_exactly_one_kind_of_region_is_needed(region, message):
    with pytest.raises(UserError, match=message):
        Region(**region)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"rows": 0}, "expected 1 to 2 of the model's 3 rows to keep, got 0 rows"),
        ({"rows": 3}, "got 3 rows"),
        ({"rows": -1}, "got -1 rows"),
        ({"box": (0, 0, 41, 24)}, "inside the 40×24 pixels of the picture, .* got 0,0,41,24"),
        ({"box": (-1, 0, 4, 4)}, "got -1,0,4,4"),
        ({"box": (4, 0, 4, 4)}, "got 4,0,4,4"),
        ({"box": (0, 9, 4, 4)}, "got 0,9,4,4"),
        ({"mask": make_mask((24, 40))}, "expected a mask of 40×24 pixels, the size of the picture, got 24×40"),
        ({"mask": make_mask(SIZE)}, "expected something to redraw"),
    ],
)
def test_regions_that_do_not_fit_are_refused(region, message):
    with pytest.raises(UserError, match=message):
        redrawn_rows(Region(**region))


# --- canvases


def test_a_canvas_has_the_ids_of_the_cropped_and_resized_picture(tiny_dalle, picture):
    large = picture.resize((100, 30), Image.Resampling.BICUBIC)
    canvas = completion_canvas(tiny_dalle.image_tokenizer, GRID, large, Region(rows=1), True)
    pixels = to_pixels([large], (24, 40))
    assert canvas.picture.tobytes() == to_images(pixels)[0].tobytes()
    assert torch.equal(canvas.known.image_ids, tiny_dalle.image_tokenizer.encode(pixels)[0])
    assert canvas.metadata == {
        "picture": picture_hash(large),
        "panel": False,
        "redrawn": [".....", "#####", "#####"],
        "paste": True,
    }


def test_original_pixels_are_pasted_into_cells_that_are_kept(tiny_dalle, picture):
    region = Region(box=(15, 7, 17, 9))
    canvas = completion_canvas(tiny_dalle.image_tokenizer, GRID, picture, region, True)
    red = Image.new("RGB", SIZE, "red")
    finished = np.asarray(canvas.paste_original(red))
    expected = np.array(picture)
    expected[:16, 8:24] = (255, 0, 0)
    assert np.array_equal(finished, expected)
    assert dataclasses.replace(canvas, paste=False).paste_original(red).tobytes() == red.tobytes()


def test_a_panel_shows_the_whole_picture_above_white():
    picture = Image.new("RGB", (60, 60), "blue")
    picture.paste("red", (0, 30, 60, 60))
    values = np.asarray(squeeze_to_top(picture, (30, 30), 1 / 3))
    assert (values[10:] == 255).all()
    reds = values[:10, :, 0].astype(int) - values[:10, :, 2]
    assert (reds[:4] < 0).all()
    assert (reds[6:] > 0).all()


def test_a_panel_is_squeezed_before_it_is_encoded(tiny_dalle, picture):
    canvas = completion_canvas(tiny_dalle.image_tokenizer, GRID, picture, Region(panel=True), True)
    values = np.asarray(canvas.picture)
    assert (values[8:] == 255).all()
    assert np.abs(values[:8].astype(int) - np.asarray(picture.resize((40, 8), Image.Resampling.LANCZOS))).max() <= 1
    assert canvas.metadata["panel"] is True


def test_transparent_parts_of_a_picture_become_white(tiny_dalle, picture):
    clear = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    for region in (Region(rows=1), Region(panel=True)):
        canvas = completion_canvas(tiny_dalle.image_tokenizer, GRID, clear, region, True)
        assert np.asarray(canvas.picture).min() == 255


def test_a_variation_may_redraw_every_cell_and_pastes_nothing(tiny_dalle, picture):
    canvas = variation_canvas(tiny_dalle.image_tokenizer, GRID, picture, 0.25)
    assert canvas.known.redraw.all()
    assert canvas.known.redraw_probability == 0.25
    assert canvas.metadata == {"picture": picture_hash(picture), "strength": 0.25}
    assert canvas.paste_original(picture.rotate(180)).tobytes() == picture.rotate(180).tobytes()
    for strength in (0, 1.01, -1):
        with pytest.raises(UserError, match=f"strength above 0 and at most 1, got {strength}"):
            variation_canvas(tiny_dalle.image_tokenizer, GRID, picture, strength)


def test_hashes_of_different_pictures_differ(picture):
    pictures = [
        picture,
        picture.rotate(180),
        picture.convert("RGBA"),
        Image.frombytes("RGB", (24, 40), picture.tobytes()),
    ]
    assert len({picture_hash(image) for image in pictures}) == 4
    assert picture_hash(picture.copy()) == picture_hash(picture)
