"""Stored pictures on white, and their random variants."""

import numpy as np
import pytest
import torch

from dalle_mini_impl.config.data import AugmentConfig
from dalle_mini_impl.data.augment import augmented_pixels, pixels_on_white, random_changes

NEUTRAL = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]  # scale, mirrored, right, down, white


def noise(batch, size, opaque=True, seed=0):
    rgba = np.random.default_rng(seed).integers(0, 256, (batch, size, size, 4), dtype=np.uint8)
    if opaque:
        rgba[..., 3] = 255
    return rgba


def square(size, top, left, side, colour=(255, 0, 0)):
    """One opaque square on a transparent picture."""
    rgba = np.zeros((1, size, size, 4), dtype=np.uint8)
    rgba[0, top : top + side, left : left + side] = (*colour, 255)
    return rgba


def apply(rgba, changes, size, may_flip=True, keep_inside=False):
    rows = torch.tensor(changes).expand(len(rgba), -1)
    return augmented_pixels(rgba, np.full(len(rgba), may_flip), rows, size, keep_inside)


def as_pixels(rgba):
    return torch.from_numpy(rgba[..., :3]).permute(0, 3, 1, 2).float() / 127.5 - 1


def centre_of_mass(pixels):
    """Centre of mass (right, down) of all that is not white, in pixels from the middle of the frame."""
    weight = (1 - pixels[0].mean(0)).clamp(min=0)
    positions = torch.arange(pixels.shape[-1]) + 0.5 - pixels.shape[-1] / 2
    return float((weight.sum(0) * positions).sum() / weight.sum()), float(
        (weight.sum(1) * positions).sum() / weight.sum()
    )


# --- pixels on white


def test_opaque_pictures_on_white_are_unchanged_at_their_own_size():
    rgba = noise(3, 13)
    torch.testing.assert_close(pixels_on_white(rgba, 13), as_pixels(rgba), atol=1e-6, rtol=0)


def test_transparent_parts_become_white():
    pixels = pixels_on_white(square(6, 0, 0, 3), 6)
    assert pixels.shape == (1, 3, 6, 6)
    assert pixels[0, :, 0, 0].tolist() == [1, -1, -1]
    assert pixels[0, :, 5, 5].tolist() == [1, 1, 1]


def test_half_transparent_is_half_white():
    rgba = np.zeros((1, 2, 2, 4), dtype=np.uint8)
    rgba[..., 3] = 51
    assert pixels_on_white(rgba, 2)[0, 0, 0, 0] == pytest.approx(0.6)


@pytest.mark.parametrize("size", [7, 14])
def test_colour_of_transparent_pixels_makes_no_fringe(size):
    # The transparent part is green; resizing colour without regard to alpha would leave a green fringe.
    rgba = square(28, 7, 7, 14)
    rgba[rgba[..., 3] == 0] = (0, 255, 0, 0)
    for pixels in (pixels_on_white(rgba, size), apply(rgba, [0.9, *NEUTRAL[1:]], size)):
        assert bool((pixels[0, 0] > 0.99).all())  # red is full in red and in white
        torch.testing.assert_close(pixels[0, 1], pixels[0, 2])


def test_shrinking_preserves_the_mean_colour():
    rgba = noise(2, 32)
    torch.testing.assert_close(
        pixels_on_white(rgba, 8).mean(dim=(2, 3)), as_pixels(rgba).mean(dim=(2, 3)), atol=0.02, rtol=0
    )


# --- augmented pixels


def test_neutral_changes_equal_pixels_on_white():
    rgba = noise(3, 13, opaque=False)
    torch.testing.assert_close(apply(rgba, NEUTRAL, 13), pixels_on_white(rgba, 13), atol=1e-4, rtol=0)


def test_only_pictures_that_may_flip_are_mirrored():
    rgba = noise(3, 13)
    mirrored = [1.0, -1.0, *NEUTRAL[2:]]
    rows = torch.tensor(mirrored).expand(3, -1)
    pixels = augmented_pixels(rgba, np.array([True, False, True]), rows, 13)
    plain = pixels_on_white(rgba, 13)
    torch.testing.assert_close(pixels[0], plain[0].flip(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels[1], plain[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels[2], plain[2].flip(-1), atol=1e-4, rtol=0)


def test_shift_moves_right_and_down():
    # The frame is 2 wide, so 3 of 12 pixels are 0.5.
    rgba = noise(1, 12, opaque=False)
    pixels, plain = apply(rgba, [1.0, 1.0, 0.5, 2 / 12, 1, 1, 1], 12), pixels_on_white(rgba, 12)
    torch.testing.assert_close(pixels[:, :, 1:, 3:], plain[:, :, :-1, :-3], atol=1e-4, rtol=0)


def test_smaller_picture_stays_in_the_middle():
    pixels = apply(square(40, 10, 10, 20), [0.5, *NEUTRAL[1:]], 40)
    covered = (pixels[0, 1] < 0).nonzero()
    assert covered.min(0).values.tolist() == [15, 15]
    assert covered.max(0).values.tolist() == [24, 24]


def test_scale_and_shift_are_independent():
    right, down = centre_of_mass(apply(square(40, 10, 10, 20), [0.5, 1.0, 0.25, -0.125, 1, 1, 1], 40))
    assert right == pytest.approx(5, abs=0.1)
    assert down == pytest.approx(-2.5, abs=0.1)


def test_background_shows_only_behind_transparent_parts():
    blue = [1.0, 1.0, 0.0, 0.0, 0.0, 0.2, 1.0]
    pixels = apply(square(20, 5, 5, 10), blue, 20)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, -0.6, 1])
    assert pixels[0, :, 10, 10].tolist() == pytest.approx([1, -1, -1], abs=1e-5)
    photo = noise(1, 20)
    moved = [0.8, 1, 0.1, 0.1]
    torch.testing.assert_close(apply(photo, [*moved, 0, 0.2, 1], 20), apply(photo, [*moved, 1, 1, 1], 20))


def test_opaque_pictures_are_continued_at_their_border():
    grey = np.full((1, 20, 20, 4), 255, dtype=np.uint8)
    grey[..., :3] = 51
    pixels = apply(grey, [0.7, 1.0, 0.2, 0.2, 1.0, 0.0, 0.0], 20)
    torch.testing.assert_close(pixels, torch.full_like(pixels, -0.6), atol=1e-5, rtol=0)


def test_much_larger_pictures_do_not_alias():
    stripes = np.full((1, 96, 96, 4), 255, dtype=np.uint8)
    stripes[:, :, ::2, :3] = 0
    pixels = apply(stripes, NEUTRAL, 12)
    assert float(pixels.abs().max()) < 0.1  # even grey, not stripes


def test_each_row_is_changed_independently_of_its_batch():
    rgba = noise(5, 16)
    changes = random_changes(5, AugmentConfig(flip=0.5, background=0.25), torch.Generator().manual_seed(0))
    flip = np.array([True, False, True, True, False])
    whole = augmented_pixels(rgba, flip, changes, 8)
    assert whole.shape == (5, 3, 8, 8)
    for n in range(5):
        alone = augmented_pixels(rgba[n : n + 1], flip[n : n + 1], changes[n : n + 1], 8)
        torch.testing.assert_close(alone[0], whole[n])


def test_pixels_stay_in_range_and_arguments_are_not_changed():
    rgba, changes = (
        noise(7, 16, opaque=False),
        random_changes(7, AugmentConfig(flip=0.5, background=0.25), torch.Generator().manual_seed(0)),
    )
    before = rgba.copy(), changes.clone()
    pixels = augmented_pixels(rgba, np.ones(7, dtype=bool), changes, 11)
    assert -1 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert pixels.dtype == torch.float32
    assert np.array_equal(rgba, before[0])
    assert torch.equal(changes, before[1])


# --- what is drawn stays inside


def ramp(size):
    """A picture that fills its frame: brightness rises to the right (green) and downwards (blue)."""
    rgba = np.full((1, size, size, 4), 255, dtype=np.uint8)
    rgba[0, :, :, 0] = np.random.default_rng(0).integers(0, 256, (size, size))
    rgba[0, :, :, 1] = np.linspace(0, 255, size, dtype=np.uint8)
    rgba[0, :, :, 2] = np.linspace(0, 255, size, dtype=np.uint8)[:, None]
    return rgba


@pytest.mark.parametrize("size", [8, 16, 32])
def test_photographs_are_enlarged_instead_of_made_smaller(size):
    rgba = ramp(32)
    changes = random_changes(23, AugmentConfig(scale=(0.6, 1.0), shift=0.3), torch.Generator().manual_seed(2))
    pixels = augmented_pixels(rgba.repeat(23, 0), np.zeros(23, bool), changes, size)
    # Where a border was repeated, neighbouring columns or rows would be equal.
    assert (pixels[:, 1].diff(dim=-1) > 0).all()
    assert (pixels[:, 2].diff(dim=-2) > 0).all()
    # The smaller the scale, the smaller the part of the picture that is seen.
    seen = (pixels[:, 1, 0, -1] - pixels[:, 1, 0, 0]) / 2
    torch.testing.assert_close(seen, changes[:, 0] * (size - 1) / size, atol=0.05, rtol=0)


def test_photographs_are_unchanged_by_neutral_changes():
    torch.testing.assert_close(
        apply(ramp(13), NEUTRAL, 13, keep_inside=True), pixels_on_white(ramp(13), 13), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("mirrored", [1.0, -1.0])
@pytest.mark.parametrize("ground", [None, (230, 240, 200)])
def test_drawings_are_shifted_only_within_the_frame(ground, mirrored):
    drawing = square(40, 0, 6, 30)  # touches the upper edge
    if ground:
        drawing = np.where(drawing[..., 3:] > 0, drawing, np.uint8([*ground, 255]))
    around = torch.tensor(ground or (255, 255, 255)).float()[:, None] / 127.5 - 1
    for shift in ((0.6, -0.3), (-0.6, 0.6)):
        pixels = apply(drawing, [0.9, mirrored, *shift, 1, 1, 1], 40, keep_inside=True)
        columns = (pixels[0, 1] < -0.5).sum(1)
        assert float((pixels[0, 1] < -0.5).sum()) == pytest.approx(27 * 27, abs=40)  # nothing was cut off
        assert int(columns.max()) in (26, 27, 28)
        background = pixels[0][:, (pixels[0, 1] > 0.5)]
        far = background[:, (background - around).abs().amax(0) < 0.02]
        assert far.shape[1] > 0.9 * background.shape[1]


def test_drawings_at_the_edge_are_not_repeated_beyond_it():
    touching = square(40, 0, 0, 40)
    touching[0, 10:30, 10:30] = 0
    pixels = apply(touching, [0.5, *NEUTRAL[1:]], 40, keep_inside=True)
    assert (pixels[0, :, :9] > 0.99).all()
    assert (pixels[0, :, :, -9:] > 0.99).all()


def test_drawings_larger_than_the_frame_are_shifted_up_to_their_edges():
    drawing = square(40, 5, 5, 30)
    pixels = apply(drawing, [2.0, 1.0, 3.0, -3.0, 1, 1, 1], 40, keep_inside=True)
    assert (pixels[0, 1, :-1, 1:] < -0.4).all()


def test_mixed_batches_are_changed_picture_by_picture():
    plain = np.full((1, 32, 32, 4), 255, np.uint8)
    plain[0, 9:20, 3:29, 1] = 0
    rgba = np.concatenate([ramp(32), square(32, 2, 3, 20), plain])
    changes = random_changes(3, AugmentConfig(background=1.0), torch.Generator().manual_seed(1))
    whole = augmented_pixels(rgba, np.ones(3, bool), changes, 16)
    for n in range(3):
        alone = augmented_pixels(rgba[n : n + 1], np.ones(1, bool), changes[n : n + 1], 16)
        torch.testing.assert_close(alone[0], whole[n])


# --- random changes


def test_changes_cover_their_ranges():
    config = AugmentConfig(scale=(0.7, 0.9), shift=0.1, flip=0.3, background=0.4)
    changes = random_changes(20_011, config, torch.Generator().manual_seed(0))
    assert changes.shape == (20_011, 7)
    scale, mirrored, shift, colour = changes[:, 0], changes[:, 1], changes[:, 2:4], changes[:, 4:]
    assert 0.7 <= float(scale.min()) < 0.701
    assert 0.899 < float(scale.max()) <= 0.9
    assert set(mirrored.tolist()) == {1.0, -1.0}
    assert float((mirrored < 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert -0.2 <= float(shift.min()) < -0.199
    assert 0.199 < float(shift.max()) <= 0.2
    white = (colour == 1).all(1)
    assert float(white.float().mean()) == pytest.approx(0.6, abs=0.02)
    assert float(colour[~white].mean()) == pytest.approx(0.5, abs=0.02)


def test_config_can_switch_every_change_off():
    config = AugmentConfig(scale=(1.0, 1.0), shift=0.0, flip=0.0, background=0.0)
    changes = random_changes(101, config, torch.Generator().manual_seed(0))
    assert torch.equal(changes, torch.tensor(NEUTRAL).expand(101, -1))


def test_changes_depend_on_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (random_changes(7, AugmentConfig(), torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# --- crops

NO_OTHER_CHANGE = {"shift": 0.0, "flip": 0.0, "background": 0.0}


def test_crops_cover_every_part_of_an_enlarged_picture():
    config = AugmentConfig(**NO_OTHER_CHANGE, scale=(1.0, 1.5), crop=True)
    scale, _, right, down, *_ = random_changes(20_011, config, torch.Generator().manual_seed(1)).T
    for shift in (right, down):  # half of the frame is 1 wide: the picture reaches from shift - scale to shift + scale
        assert float((shift - scale).max()) <= -1
        assert float((shift + scale).min()) >= 1
        position = shift / (scale - 1)  # -1 to 1, from one edge of the picture to the other
        assert float(position.min()) < -0.99
        assert float(position.max()) > 0.99
        assert float(position.mean()) == pytest.approx(0, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([right, down]))[0, 1])) < 0.05


def test_crops_stay_inside_the_picture():
    rgba = np.full((1, 32, 32, 4), 255, dtype=np.uint8)
    rgba[0, :, :, 1] = np.linspace(0, 255, 32, dtype=np.uint8)
    config = AugmentConfig(**NO_OTHER_CHANGE, scale=(1.1, 1.5), crop=True)
    changes = random_changes(7, config, torch.Generator().manual_seed(2))
    pixels = augmented_pixels(rgba.repeat(7, 0), np.zeros(7, bool), changes, 16)
    # Where a border was repeated, neighbouring columns would be equal.
    assert (pixels[:, 1].diff(dim=-1) > 0).all()


def test_pictures_within_the_frame_are_not_cropped():
    config = AugmentConfig(**NO_OTHER_CHANGE, scale=(0.6, 1.0), crop=True)
    assert (random_changes(5, config, torch.Generator().manual_seed(3))[:, 2:4] == 0).all()
