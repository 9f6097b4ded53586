"""Things in front of others, and sizes."""

import numpy as np
from PIL import Image

from dalle_mini_impl.data.scenes.layout import COVERED, boxes, overlapping_boxes
from dalle_mini_impl.data.scenes.plan import SceneObject, ScenePlan

RED, BLUE = (200, 30, 30, 255), (30, 30, 200, 255)


def test_the_one_in_front_covers_a_part_of_the_one_behind():
    sprites = [Image.new("RGBA", (40, 40), colour) for colour in (RED, BLUE)]
    for row in range(20):
        (left, top, side), (x, y, larger) = overlapping_boxes(sprites, 128, np.random.default_rng(row))
        assert larger > side
        assert top > y
        wide = min(left + side, x + larger) - max(left, x)
        high = min(top + side, y + larger) - max(top, y)
        assert COVERED[0] <= wide * high / larger**2 <= COVERED[1]
        assert min(left, top, x, y) >= 0
        assert max(left + side, top + side, x + larger, y + larger) <= 128


def test_things_of_one_colour_are_not_put_in_front_of_each_other():
    same = Image.new("RGBA", (40, 40), RED)
    assert overlapping_boxes([same, same], 128, np.random.default_rng(0)) is None


def test_big_and_small_things_differ_clearly():
    sides = {
        size: [
            boxes(ScenePlan("size", (SceneObject("cat", size=size),)), 100, np.random.default_rng(row))[0][2]
            for row in range(40)
        ]
        for size in ("big", "small")
    }
    assert min(sides["big"]) >= 88
    assert max(sides["small"]) <= 32
