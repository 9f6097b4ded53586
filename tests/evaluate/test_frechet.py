"""The Fréchet distance between sets of features."""

import sys

import pytest
import torch

from dalle_mini_impl.evaluate.frechet import frechet_distance
from dalle_mini_impl.util.errors import UserError


def test_frechet_distance_of_shifted_and_of_stretched_features():
    pytest.importorskip("torchmetrics")
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([3.0, 0, 4])
    assert frechet_distance(features + shift, features) == pytest.approx(25, rel=1e-4)
    # Stretching adds the square of the difference of the standard deviations, along each axis.
    stretched = features * torch.tensor([3.0, 1, 1])
    mean, std = features[:, 0].mean(), features[:, 0].std()
    assert frechet_distance(stretched, features) == pytest.approx(float((2 * mean) ** 2 + (2 * std) ** 2), rel=1e-2)


def test_frechet_distance_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(UserError, match=r"'\.\[eval\]'"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(2, 3))
