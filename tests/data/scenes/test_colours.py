"""OKLab, naming of colours, and recolouring."""

import numpy as np
import pytest

from dalle_mini_impl.data.scenes.colours import COLOURS, from_oklab, name_shares, recolour, to_oklab


def drawing(*colours):
    """A drawing (16, 16, 4) with stripes of equal height, in a transparent frame of 4 pixels."""
    rgba = np.zeros((24, 24, 4), np.uint8)
    for number, colour in enumerate(colours):
        height = 16 // len(colours)
        rgba[4 + number * height : 4 + (number + 1) * height, 4:20] = (*colour, 255)
    return rgba


def test_oklab_has_the_published_values_and_is_undone():
    # From Ottosson's description of OKLab: white is (1, 0, 0), sRGB red (0.628, 0.225, 0.126).
    assert to_oklab(np.array([255, 255, 255])) == pytest.approx([1, 0, 0], abs=1e-3)
    assert to_oklab(np.array([255, 0, 0])) == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)
    values = np.random.default_rng(0).integers(0, 256, (500, 3))
    assert (from_oklab(to_oklab(values)) == values).all()


@pytest.mark.parametrize("name", COLOURS)
def test_a_named_colour_is_named_so(name):
    shares = name_shares(drawing(COLOURS[name]))
    assert shares[name] == 1
    assert sum(shares.values()) == 1


def test_shares_count_drawn_pixels_only():
    assert name_shares(drawing(COLOURS["red"], COLOURS["blue"]))["red"] == 0.5
    assert set(name_shares(np.zeros((4, 4, 4), np.uint8)).values()) == {0}


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("start", [(230, 180, 90), (90, 140, 220), (120, 120, 120), (250, 250, 250), (20, 20, 20)])
def test_recoloured_drawing_has_the_colour_and_its_shape(name, start):
    before = drawing(start)
    after = recolour(before, name)
    assert name_shares(after)[name] == 1
    assert (after[..., 3] == before[..., 3]).all()
    assert (after[before[..., 3] == 0] == 0).all()


def test_small_dark_and_white_parts_keep_their_colours():
    before = drawing((230, 180, 90))
    before[6:8, 6:8, :3] = 10
    before[6:8, 12:14, :3] = 255
    after = recolour(before, "blue")
    assert (after[6:8, 6:8, :3] == 10).all()
    assert (after[6:8, 12:14, :3] == 255).all()
    assert (after[10, 10, :3] != before[10, 10, :3]).any()


def test_drawing_that_cannot_have_the_colour_is_refused():
    assert recolour(np.zeros((8, 8, 4), np.uint8), "red") is None
    # Light and dark stripes keep their contrast, so neither half is pink.
    assert recolour(drawing((5, 5, 90), (120, 255, 255)), "pink") is None
