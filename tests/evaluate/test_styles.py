"""Whose style a picture has, and whether it has the concept as well."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from dalle_mini_impl.evaluate.generation import GeneratedPictures, part_rows
from dalle_mini_impl.evaluate.judges import pixel_judge
from dalle_mini_impl.evaluate.r_precision import RPrecision
from dalle_mini_impl.evaluate.styles import fit_style_probe, style_figures

DIM = 8
VENDORS = torch.arange(90) % 3
HELD_OUT = torch.arange(90) >= 60


def features_of(vendors, seed):
    """Features whose first three numbers lean to the vendor, beside noise that is as large."""
    noise = torch.randn(len(vendors), DIM, generator=torch.Generator().manual_seed(seed))
    return F.normalize(noise + 6 * F.one_hot(vendors, DIM), dim=-1)


@pytest.fixture
def measure():
    return RPrecision(pixel_judge(), torch.zeros(DIM), torch.eye(DIM), features_of(VENDORS, 0), VENDORS // 3, VENDORS)


def test_vendors_of_pictures_that_it_was_not_fitted_to_are_told(measure):
    probe = fit_style_probe(measure, ~HELD_OUT)
    assert torch.equal(probe.vendors(measure.reference_features[HELD_OUT]), VENDORS[HELD_OUT])
    other = features_of(VENDORS, 1)
    assert torch.equal(probe.vendors(other.reshape(9, 10, DIM)).flatten(), VENDORS)


def test_the_intercept_is_not_held_down(measure):
    shifted = RPrecision(
        measure.judge, measure.mean, measure.projection, measure.reference_features + 100, VENDORS // 3, VENDORS
    )
    probe = fit_style_probe(shifted, ~HELD_OUT)
    assert torch.equal(probe.vendors(shifted.reference_features[HELD_OUT]), VENDORS[HELD_OUT])


def test_style_counts_alone_and_together_with_the_concept(measure):
    reference = SimpleNamespace(
        vendor_ids=VENDORS, of_split=lambda split: HELD_OUT if split == "validation" else ~HELD_OUT
    )
    indices = [60, 61, 62, 63]
    drawn = VENDORS[indices].clone()
    drawn[3] = (drawn[3] + 1) % 3  # the last one is in another style
    features = {"pixels": torch.stack([features_of(drawn, 2), features_of(drawn.roll(1), 3)], 1)}
    ranks = {"pixels": torch.tensor([[0, 9], [3, 0], [7, 0], [0, 0]])}
    context = SimpleNamespace(reference=reference, r_precisions={"pixels": measure})
    figures = style_figures(context, GeneratedPictures([], indices, features, ranks))
    assert figures.drawn["pixels"].value == 0.75
    assert figures.real["pixels"].value == 1
    assert [share.value for share in figures.together.shares["pixels"]] == [0.25, 0.5]
    assert figures.together.count == 4


def test_a_part_has_rows_of_its_own_unless_it_is_all_or_nothing():
    candidates = [SimpleNamespace(score=0.5)] * 2
    ranks = {"pixels": torch.tensor([[0, 9], [9, 0], [9, 9]])}
    pictures = GeneratedPictures([candidates] * 3, [4, 5, 6], {"pixels": torch.zeros(3, 2, DIM)}, ranks)
    mean, best = part_rows("part", pictures, torch.tensor([True, True, False]))
    assert (mean.name, mean.count, mean.shares["pixels"][0].value) == ("part, mean of 2", 2, 0.5)
    assert (best.name, best.shares["pixels"][0].value) == ("part, best of 2", 0.5)
    assert part_rows("part", pictures, torch.tensor([True] * 3)) == []
    assert part_rows("part", pictures, torch.tensor([False] * 3)) == []
