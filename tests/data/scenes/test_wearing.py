"""Faces are found by their eyes, and things are put where they belong."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dalle_mini_impl.data.scenes.wearing import Wardrobe, can_wear, dress, find_face, is_head

SKIN, DARK = (240, 200, 60, 255), (30, 25, 20, 255)


def head(*spots, shape=(14, 24, 114, 124)):
    """A round head with dark spots (x, y, radius)."""
    image = Image.new("RGBA", (128, 128))
    draw = ImageDraw.Draw(image)
    draw.ellipse(shape, SKIN)
    for x, y, radius in spots:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), DARK)
    return np.asarray(image)


def thing(width, height, colour=(20, 60, 220, 255)):
    pixels = np.zeros((128, 128, 4), np.uint8)
    pixels[64 - height // 2 : 64 + height // 2, 64 - width // 2 : 64 + width // 2] = colour
    return pixels


EYES = ((46, 64, 6), (82, 64, 6))


def test_eyes_and_the_top_of_the_head_are_found():
    face = find_face(head(*EYES))
    assert face.eyes == pytest.approx((46.5, 82.5), abs=1)
    assert face.eye_height == pytest.approx(64.5, abs=1)
    assert face.top == pytest.approx(24, abs=1)
    assert face.width == pytest.approx(98, abs=4)


def test_brows_are_no_eyes():
    image = Image.fromarray(head(*EYES), "RGBA")
    draw = ImageDraw.Draw(image)
    for x, end in ((36, 54), (92, 74)):
        draw.line((x, 44, end, 52), DARK, 4)
    assert find_face(np.asarray(image)).eye_height == pytest.approx(64.5, abs=1)
    closed = Image.fromarray(head(), "RGBA")
    draw = ImageDraw.Draw(closed)
    for x in (46, 82):
        draw.arc((x - 8, 52, x + 8, 72), 0, 180, DARK, 4)
    assert find_face(np.asarray(closed)).eyes == pytest.approx((46.5, 82.5), abs=1)


def test_nostrils_and_a_mouth_are_no_eyes():
    face = find_face(head(*EYES, (54, 92, 5), (74, 92, 5), (64, 108, 8)))
    assert face.eyes == pytest.approx((46.5, 82.5), abs=1)
    assert face.eye_height == pytest.approx(64.5, abs=1)


@pytest.mark.parametrize(
    "spots",
    [
        [],
        [(64, 60, 6)],
        [(46, 64, 6), (82, 80, 6)],  # one is lower
        [(46, 64, 3), (82, 64, 8)],  # one is larger
        [(24, 64, 5), (54, 64, 5)],  # both on the left
        [(60, 64, 3), (70, 64, 3)],  # too near
        [(40, 64, 15), (86, 64, 15)],  # too large
    ],
)
def test_other_spots_are_no_face(spots):
    assert find_face(head(*spots)) is None


def test_a_drawing_from_the_side_is_no_face():
    pixels = head(*EYES).copy()
    pixels[100:, 100:] = SKIN  # a tail
    pixels[40:120, 110:] = SKIN
    assert find_face(pixels) is None
    assert find_face(np.zeros((64, 64, 4), np.uint8)) is None


def changed(pixels, before):
    """Rows and columns (first, last) that differ, in the frame of the head."""
    wide = np.zeros_like(pixels)
    wide[64:192, 64:192] = before
    rows, columns = ((pixels != wide).any(-1).nonzero()[axis] - 64 for axis in (0, 1))
    return (rows.min(), rows.max()), (columns.min(), columns.max())


def test_glasses_are_on_the_eyes():
    before = head(*EYES)
    (top, bottom), (left, right) = changed(dress(before, find_face(before), thing(100, 30), "glasses"), before)
    assert (top + bottom) / 2 == pytest.approx(64, abs=1.5)
    assert (left + right) / 2 == pytest.approx(64, abs=1.5)
    assert left < 46 - 6
    assert right > 82 + 6
    assert bottom < 90


def test_hats_are_on_the_head_and_touch_it():
    before = head(*EYES)
    for hat in ("crown", "top hat", "graduation cap", "woman’s hat", "billed cap"):
        (top, bottom), (left, right) = changed(dress(before, find_face(before), thing(100, 80), hat), before)
        assert top < 0
        assert 24 < bottom < 64 - 6, hat  # it covers the top of the head, but not the eyes
        assert (left + right) / 2 == pytest.approx(64, abs=1.5)
        assert 50 < right - left < 100


def test_what_would_not_be_seen_is_not_worn():
    before = head(*EYES)
    assert dress(before, find_face(before), thing(100, 80, SKIN), "crown") is None


def test_hats_need_a_forehead():
    low = find_face(head((46, 34, 6), (82, 34, 6)))
    assert can_wear(low, "sunglasses")
    assert not can_wear(low, "crown")
    wardrobe = Wardrobe({"frog": (0, low), "bear": (1, find_face(head(*EYES)))}, {"crown": 2, "glasses": 3})
    assert wardrobe.outfits == {"bear": ("crown", "glasses"), "frog": ("glasses",)}
    assert wardrobe.only({"frog", "crown"}).outfits == {}


@pytest.mark.parametrize(
    ("concept", "group", "expected"),
    [
        ("cat face", "Animals & Nature", True),
        ("koala", "Animals & Nature", True),
        ("pensive face", "Smileys & Emotion", True),
        ("cowboy hat face", "Smileys & Emotion", False),
        ("upside-down face", "Smileys & Emotion", False),
        ("deciduous tree", "Animals & Nature", False),
        ("teapot", "Food & Drink", False),
    ],
)
def test_heads_are_faces_and_animals(concept, group, expected):
    assert is_head(concept, group) is expected
