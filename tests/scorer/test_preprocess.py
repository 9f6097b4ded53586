"""Preprocessing of pictures and pixels, compared with Pillow and transformers."""

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZES = ((21, 21), (41, 83), (90, 33), (13, 17), (24, 21), (200, 22))


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of large soft patches whose values are well inside 0 to 255, so that resizing clamps nothing."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(60, 190, (3, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def pixels_of(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1


def by_pillow(picture, settings):
    """Reference: resize the whole picture, then crop; (3, size, size) in [0, 1]."""
    method, size = Image.Resampling[settings.interpolation.upper()], settings.size
    width, height = picture.size
    if settings.resize == "squash":
        picture = picture.resize((size, size), method)
    elif settings.resize == "crop":
        shorter = min(width, height)
        width, height = int(size * width / shorter), int(size * height / shorter)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.resize((width, height), method).crop((left, top, left + size, top + size))
    else:
        return (to_pixels([picture], size)[0] + 1) / 2
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("interpolation", "resize"),
    [("bilinear", "crop"), ("bicubic", "crop"), ("bicubic", "squash"), ("lanczos", "squash"), ("lanczos", "fit")],
)
def test_pictures_are_prepared_as_by_pillow(size, interpolation, resize):
    settings = Preprocess(21, MEAN, STD, interpolation, resize)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = (by_pillow(picture, settings) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(settings.from_images([picture])[0], expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["fit", "crop", "squash"])
def test_pixels_and_pictures_are_prepared_alike(size, interpolation, resize):
    settings = Preprocess(21, MEAN, STD, interpolation, resize)
    if resize == "fit" and (size[0] - size[1]) % 2:
        size = (size[0] + 1, size[1])  # without a centre pixel, the crop of pixels is half a pixel to the left
    picture = smooth(*size)
    inner = slice(2, -2) if resize == "fit" else slice(None)  # Pillow's filter also reads pixels outside the square
    by_pixels = settings.from_pixels(pixels_of(picture)) * torch.tensor(STD)[:, None, None]
    by_picture = settings.from_images([picture]) * torch.tensor(STD)[:, None, None]
    # Pillow rounds to 8 bits after each direction; the absolute values of bicubic weights sum to up to 1.3.
    assert (by_pixels - by_picture)[..., inner, inner].abs().max() <= (0.5 * 1.3 + 0.5) / 255


def test_gradients_reach_the_pixels():
    for resize in ("fit", "crop", "squash"):
        pixels = torch.zeros(2, 3, 31, 47, requires_grad=True)
        Preprocess(21, MEAN, STD, "bicubic", resize).from_pixels(pixels)[:, 1].sum().backward()
        assert pixels.grad[:, [0, 2]].eq(0).all()
        # Each output pixel is a weighted mean of input pixels, so the gradients of each sum to 1 / (2 std).
        assert pixels.grad[0, 1].sum().item() == pytest.approx(21 * 21 / 0.6, rel=1e-4)
        assert pixels.grad[0, 1, 15, 23] > 0
        assert (pixels.grad[0, 1, :, 0].abs().max() > 0) == (resize == "squash")


def test_antialiasing_averages_narrow_stripes():
    # The stripes' period is one output pixel: without antialiasing one stripe's value would be sampled.
    wide = torch.ones(1, 3, 63, 73)
    wide[..., 5:68] = torch.tensor([1.0, -0.5, -0.5]).repeat(21)
    prepared = Preprocess(21).from_pixels(wide)
    torch.testing.assert_close(prepared[..., 2:-2, 2:-2], torch.zeros(1, 3, 17, 17), rtol=0, atol=1e-5)


def test_long_thin_picture_is_cropped_before_resizing():
    picture = Image.new("RGB", (60_000, 1), "white")
    assert torch.equal(Preprocess(21, resize="crop").from_images([picture]), torch.ones(1, 3, 21, 21))


def test_pixels_of_the_models_size_are_not_resampled():
    pixels = torch.randn(2, 3, 21, 21)
    assert torch.equal(Preprocess(21).from_pixels(pixels), pixels)


def test_transparent_and_16_bit_pictures_are_converted():
    clear, grey = Image.new("RGBA", (5, 7), (0, 0, 0, 0)), Image.new("I;16", (5, 7), 0x3300)
    prepared = Preprocess(3).from_images([clear, grey])
    torch.testing.assert_close(prepared[:, 0, 0, 0], torch.tensor([1.0, -0.6]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"std": (1.0, 1.0)},
        {"interpolation": "nearest"},
        {"resize": "longest"},
        {"activation": "tanh"},
    ],
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Preprocess(**({"size": 21} | wrong))


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_prepared_as_by_transformers(size):
    pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    width, height = size
    picture = smooth(width, height, seed=2)
    side = {"height": 21, "width": 21}
    stats = {"image_mean": list(MEAN), "image_std": list(STD)}
    for processor, resize in (
        (CLIPImageProcessorPil(size={"shortest_edge": 21}, crop_size=side, **stats), "crop"),
        (SiglipImageProcessorPil(size=side, **stats), "squash"),
    ):
        expected = processor(picture, return_tensors="pt")["pixel_values"].float()
        prepared = Preprocess(21, MEAN, STD, "bicubic", resize).from_images([picture])
        torch.testing.assert_close(prepared, expected, rtol=1e-5, atol=1e-5)
