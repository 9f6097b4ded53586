import math

import pytest
import torch
from helpers.pictures import random_pixels

from dalle_mini_impl.painting.cuts import Cuts, cut_out, sample_cuts
from dalle_mini_impl.util.errors import UserError


def test_a_cut_of_the_whole_picture_is_the_picture():
    pixels = random_pixels(13, 13)
    generator = torch.Generator().manual_seed(0)
    cuts = Cuts(count=3, shares=(1, 1), rotation=0, jitter=0, noise=0)
    views = cut_out(pixels, sample_cuts(cuts, 13, 13, generator), generator)
    torch.testing.assert_close(views, pixels.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(13, 29), (29, 13)])
def test_cuts_are_squares_from_all_over_the_picture(height, width):
    # Two channels hold each pixel's coordinates, from which sides and positions of cuts are read.
    across = torch.linspace(-1, 1, width).expand(height, -1)
    down = torch.linspace(-1, 1, height)[:, None].expand(-1, width)
    pixels = torch.stack([across, down, across])[None]
    generator = torch.Generator().manual_seed(1)
    cuts = Cuts(count=41, shares=(0.5, 0.9), rotation=0, jitter=0, noise=0)
    views = cut_out(pixels, sample_cuts(cuts, height, width, generator), generator)
    assert views.shape == (41, 3, 13, 13)
    steps = [views[:, 0, 6, 9] - views[:, 0, 6, 3], views[:, 1, 9, 6] - views[:, 1, 3, 6]]  # over 6 of 13 rows
    widths, heights = (step * (side - 1) / 2 * 13 / 6 for step, side in zip(steps, (width, height), strict=True))
    torch.testing.assert_close(widths, heights, rtol=1e-3, atol=1e-3)  # in pixels
    assert 0.5 * 13 - 0.01 < widths.min() < 0.6 * 13
    assert 0.8 * 13 < widths.max() < 0.9 * 13 + 0.01
    centres = views[:, 0, 6, 6] if width > height else views[:, 1, 6, 6]
    assert centres.min() < -0.4
    assert centres.max() > 0.4


def test_cuts_are_mirrored_rotated_jittered_and_noisy_only_if_the_settings_say_so():
    pixels = random_pixels(13, 13)

    def views(**changes):
        generator = torch.Generator().manual_seed(2)
        cuts = Cuts(**{"count": 11, "shares": (1, 1), "rotation": 0, "jitter": 0, "noise": 0, **changes})
        return cut_out(pixels, sample_cuts(cuts, 13, 13, generator), generator)

    def same(view, other):
        return torch.allclose(view, other[0], atol=1e-4)

    mirrored = views(mirror=True)
    assert {(same(view, pixels), same(view, pixels.flip(3))) for view in mirrored} == {(True, False), (False, True)}
    assert not any(same(view, pixels) for view in views(rotation=30))
    jittered = views(jitter=0.2)
    contrast = (jittered[:, 0, 0, 0] - jittered[:, 0, 5, 7]) / (pixels[0, 0, 0, 0] - pixels[0, 0, 5, 7])
    assert 0.8 <= contrast.min() < 0.95 < 1.05 < contrast.max() <= 1.2
    deviation = (views(noise=0.5) - pixels).flatten(1).std(1)
    assert deviation.min() < 0.2 < 0.3 < deviation.max() < 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "expected 1 or more cuts, .* got 0 cuts, 16 at a time"),
        ({"chunk": 0}, "got 32 cuts, 0 at a time"),
        ({"shares": (0.9, 0.5)}, r"expected shares of cuts .* got \(0\.9, 0\.5\)"),
        ({"shares": (0, 1)}, r"expected shares of cuts .* got \(0, 1\)"),
        ({"rotation": 181}, "expected a rotation of cuts from 0 to 180 degrees, got 181"),
        ({"jitter": 1}, "expected a jitter of cuts from 0 to below 1, got 1"),
        ({"noise": math.inf}, "expected a noise of cuts of 0 or more, got inf"),
    ],
)
def test_cuts_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Cuts(**changes)


def test_chunks_of_any_size_are_at_most_all_cuts():
    boxes = sample_cuts(Cuts(count=5), 24, 24, torch.Generator().manual_seed(0))
    assert [len(part.theta) for part in boxes.split(10**30)] == [5]
    assert [len(part.theta) for part in boxes.split(2)] == [2, 2, 1]
