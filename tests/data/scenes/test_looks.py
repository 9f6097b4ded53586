"""Drawings turned over and drawn in other manners."""

import numpy as np
import pytest
from PIL import Image

from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.looks import PIXEL_COLOURS, PIXELS, turn, with_look

RED, BLUE = (200, 30, 30, 255), (30, 30, 200, 255)


@pytest.fixture
def flag():
    """Red above blue, with a white square on the left."""
    pixels = np.zeros((60, 60, 4), np.uint8)
    pixels[:30], pixels[30:] = RED, BLUE
    pixels[10:50, 5:25] = 255
    return Image.fromarray(pixels, "RGBA")


def test_turned_over(flag):
    pixels = np.asarray(flag)
    assert (np.asarray(turn(flag, "upside down")) == pixels[::-1, ::-1]).all()
    assert (np.asarray(turn(flag, "mirrored")) == pixels[:, ::-1]).all()


def test_drawings_that_look_the_same_are_not_turned_over(flag):
    pixels = np.array(flag)
    pixels[:, :] = pixels[:, 59:]
    stripes = Image.fromarray(pixels, "RGBA")
    assert turn(stripes, "mirrored") is None
    assert turn(stripes, "upside down") is not None
    assert turn(Image.new("RGBA", (60, 60), RED), "upside down") is None


def test_black_and_white_has_no_colour_and_the_same_shape(flag):
    flag.putpixel((0, 0), (0, 0, 0, 0))
    pixels = np.asarray(with_look(flag, "black and white", 60))
    assert (pixels[..., :1] == pixels[..., 1:3]).all()
    assert pixels[5, 40, 0] > pixels[55, 40, 0]  # red is lighter than blue
    assert (pixels[..., 3] == np.asarray(flag)[..., 3]).all()


def test_outline_is_dark_at_edges_and_where_colours_change(flag):
    pixels = np.asarray(with_look(flag, "outline", 60).resize((64, 64), Image.Resampling.NEAREST))
    dark = (pixels[..., :3] == COLOURS["black"]).all(-1)
    assert set(map(tuple, pixels[pixels[..., 3] == 255][:, :3])) == {COLOURS["black"], (255, 255, 255)}
    assert dark[30, 2:5].any()  # the drawing's left edge
    assert dark[28:37, 50].any()  # red meets blue
    assert dark[30, 25:30].any()  # white meets red
    assert not dark[8:24, 35:55].any()
    assert not dark[20:40, 12:20].any()


def test_pixel_art_has_few_large_pixels_and_few_colours():
    random = np.random.default_rng(0)
    pixels = np.dstack([random.integers(0, 256, (100, 70, 3)), np.full((100, 70), 255)]).astype(np.uint8)
    pixels[:40, :30, 3] = 0
    drawn = np.asarray(with_look(Image.fromarray(pixels, "RGBA"), "pixel art", 109))
    block = 6  # 109 / 18
    assert drawn.shape[0] == 108
    assert PIXELS[0] <= drawn.shape[0] / block <= PIXELS[1]
    small = drawn[::block, ::block]
    assert (np.kron(small, np.ones((block, block, 1), np.uint8)) == drawn).all()
    assert set(np.unique(drawn[..., 3])) == {0, 255}
    assert 2 <= len(np.unique(drawn[drawn[..., 3] == 255], axis=0)) <= PIXEL_COLOURS
