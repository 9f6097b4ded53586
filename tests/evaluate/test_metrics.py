"""PSNR, codebook statistics and distances between pictures."""

import math

import pytest
import torch

from dalle_mini_impl.evaluate.metrics import count_ids, mean_distances, perplexity, psnr, usage


def random_pixels(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_by_hand():
    reference_pixels = torch.zeros(3, 3, 5, 7)
    pixels = reference_pixels.clone()
    pixels[0] += 0.2  # error 1/10 of the range: 20 dB
    pixels[1] += 0.02
    values = psnr(pixels, reference_pixels)
    assert values.shape == (3,)
    assert values[:2].tolist() == pytest.approx([20, 40], abs=1e-3)
    assert math.isinf(values[2])


def test_psnr_equals_that_of_8_bit_values():
    a, b = torch.randint(0, 256, (2, 3, 5, 7)).float(), torch.randint(0, 256, (2, 3, 5, 7)).float()
    expected = 10 * torch.log10(255**2 / (a - b).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(psnr(a / 127.5 - 1, b / 127.5 - 1), expected)


def test_psnr_of_a_picture_does_not_depend_on_the_batch():
    a, b = random_pixels(5, 3, 7, 11), random_pixels(5, 3, 7, 11, seed=1)
    alone = torch.cat([psnr(a[n : n + 1], b[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(psnr(a, b), alone)


def test_psnr_of_bf16_pictures_is_fp32():
    a = random_pixels(1, 3, 16, 16).bfloat16()
    assert psnr(a, a.float() + 0.2).dtype == torch.float32


def test_count_ids():
    counts = count_ids(torch.tensor([[[0, 3], [3, 5]], [[3, 0], [0, 3]]]), 7)
    assert counts.tolist() == [3, 0, 0, 4, 0, 1, 0]
    assert counts.dtype == torch.int64
    assert count_ids(torch.zeros(0, 2, 2, dtype=torch.int64), 7).tolist() == [0] * 7


def test_usage_is_the_fraction_of_ids_that_occur():
    assert usage(torch.tensor([3, 0, 0, 4, 0, 1, 0])) == pytest.approx(3 / 7)
    assert usage(torch.ones(5)) == 1
    assert usage(torch.zeros(5)) == 0


def test_perplexity_is_the_effective_number_of_ids():
    assert perplexity(torch.tensor([7, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([5, 5, 5, 0, 0])) == pytest.approx(3)
    assert perplexity(torch.tensor([2, 1, 1])) == pytest.approx(2**1.5)
    assert perplexity(torch.ones(1021)) == pytest.approx(1021)


def test_mean_distances_are_those_of_all_pairs():
    right, up, left = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)
    features = torch.tensor([[right, up, left], [up, up, up]])
    assert mean_distances(features).tolist() == pytest.approx([(1 + 2 + 1) / 3, 0])
