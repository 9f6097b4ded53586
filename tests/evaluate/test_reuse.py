"""The measurement that decides whether an image tokenizer is used as it is."""

from types import SimpleNamespace

import pytest
import torch
from helpers.training import draw_shape
from torch.nn import functional as F

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.evaluate import reuse
from dalle_mini_impl.evaluate.reuse import ENOUGH_GAIN, image_tokenizer_fit, measure_fit
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

DRAWINGS = to_pixels([draw_shape(shape, (200, 40, 90), 64) for shape in ("disc", "ring", "cross", "bar")], 64)


def stand_in(reconstruct):
    """An image tokenizer that decodes to whatever a function makes of the pictures."""
    return SimpleNamespace(
        encode=lambda pixels: pixels, decode=reconstruct, config=SimpleNamespace(factor=8), device=torch.device("cpu")
    )


def mean_colours(pixels):
    return F.interpolate(F.avg_pool2d(pixels, 8), scale_factor=8)


@pytest.fixture
def no_judge(monkeypatch):
    def missing(device):
        raise UserError("not installed")

    monkeypatch.setattr(reuse, "efficientnet_judge", missing)


def test_a_faithful_image_tokenizer_is_reused(no_judge):
    fit = measure_fit(stand_in(lambda pixels: 0.9 * pixels), DRAWINGS)
    assert fit.reuse
    assert (fit.pictures, fit.size, fit.similarity) == (4, 64, None)
    assert fit.psnr == pytest.approx(
        float((-20 * torch.log10(0.1 * DRAWINGS.square().mean((1, 2, 3)).sqrt() / 2)).mean())
    )
    assert "good enough as it is" in str(fit)


def test_mean_colours_alone_are_not_enough(no_judge):
    fit = measure_fit(stand_in(mean_colours), DRAWINGS)
    assert not fit.reuse
    assert fit.psnr == pytest.approx(fit.colours_psnr)
    assert "should be trained further" in str(fit)


@pytest.mark.parametrize(("gain", "expected"), [(ENOUGH_GAIN - 0.1, False), (ENOUGH_GAIN + 0.1, True)])
def test_the_decision_follows_the_gain_in_decibels(no_judge, gain, expected):
    share = 10 ** (-gain / 20)
    tokenizer = stand_in(lambda pixels: pixels + share * (mean_colours(pixels) - pixels))
    fit = measure_fit(tokenizer, DRAWINGS)
    assert fit.psnr - fit.colours_psnr == pytest.approx(gain, abs=1e-3)
    assert fit.reuse == expected


def test_features_must_be_closer_than_those_of_mean_colours(monkeypatch):
    def judge(of_version):
        features = lambda pixels: of_version if torch.equal(pixels, faded) else torch.eye(4)  # noqa: E731
        return lambda device: SimpleNamespace(features=features)

    faded = 0.9 * DRAWINGS
    for of_version in (torch.eye(4), torch.eye(4).roll(1, 0)):
        monkeypatch.setattr(reuse, "efficientnet_judge", judge(of_version))
        fit = measure_fit(stand_in(lambda pixels: 0.9 * pixels), DRAWINGS)
        assert fit.colours_similarity == pytest.approx(1)
        assert not fit.reuse
    assert "similarity of features -0.33 (mean colours 1.00)" in str(fit)


def test_a_store_is_measured(trained):
    data = DataConfig(store=str(trained.folder / "store"), validation=0.2)
    fit = image_tokenizer_fit(trained.folder / "model", data, pictures=9)
    assert (fit.pictures, fit.size) == (9, 16)
    assert not fit.reuse  # ten steps of training
    assert image_tokenizer_fit(trained.folder / "model", data, image_size=32).size == 32
    with pytest.raises(UserError, match="sides are multiples of 8 pixels"):
        image_tokenizer_fit(trained.folder / "model", data, image_size=30)
