"""The plain ground around a drawing becomes transparent; what it encloses, and pictures without one, stay."""

import numpy as np
from PIL import Image, ImageDraw

from dalle_mini_impl.data.cut_out import without_ground


def ring(ground=(250, 250, 248), side=64):
    """A red ring with smooth edges, whose inside has the colour of the ground."""
    large = Image.new("RGB", (4 * side, 4 * side), ground)
    pen = ImageDraw.Draw(large)
    pen.ellipse((32, 32, 4 * side - 32, 4 * side - 32), fill=(200, 20, 30))
    pen.ellipse((96, 96, 4 * side - 96, 4 * side - 96), fill=ground)
    return large.resize((side, side), Image.Resampling.BOX)


def test_the_ground_becomes_transparent_and_what_it_encloses_stays():
    picture = ring()
    cut = without_ground(picture)
    assert cut.mode == "RGBA"
    alpha = np.asarray(cut)[..., 3]
    assert alpha[0, 0] == alpha[-1, -1] == alpha[0, 32] == 0
    assert alpha[32, 32] == 255  # inside of the ring
    assert alpha[32, 16] == 255
    assert (np.asarray(cut)[32, 16, :3] == np.asarray(picture)[32, 16]).all()


def test_edges_have_the_colour_of_the_drawing_alone():
    picture = ring()
    cut = np.asarray(without_ground(picture)).astype(int)
    mixed = (cut[..., 3] > 0) & (cut[..., 3] < 255)
    assert mixed.sum() > 50
    assert (np.abs(cut[mixed][:, :3] - (200, 20, 30)).max(1) <= 2).all()
    back = Image.new("RGBA", picture.size, (250, 250, 248, 255))
    back.alpha_composite(Image.fromarray(cut.astype(np.uint8)))
    error = np.abs(np.asarray(back.convert("RGB")).astype(int) - np.asarray(picture))
    assert error.max() <= 24  # what counts as ground may differ as much from it


def test_other_grounds_and_pictures_without_one():
    blue = without_ground(ring(ground=(30, 60, 200)))
    assert blue.getpixel((0, 0))[3] == 0
    assert blue.getpixel((32, 32)) == (30, 60, 200, 255)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    kept = without_ground(noise)
    assert (np.asarray(kept)[..., 3] == 255).all()
    assert (np.asarray(kept)[..., :3] == np.asarray(noise)).all()
    plain = without_ground(Image.new("RGB", (16, 16), "white"))
    assert (np.asarray(plain)[..., 3] == 0).all()
