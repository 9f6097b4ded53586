"""Perceptual distances between pictures: losses by config name that compare more than single pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.evaluate.efficientnet import load_efficientnet
from dalle_mini_impl.util.errors import UserError, need_extra

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Pixels (B, 3, H, W) in [-1, 1] and a reference of that shape -> (B,) distances, 0 where they are equal;
differentiable in the first argument."""

NAMES = ("none", "gradient-ssim", "efficientnet-lite0", "lpips")
"""Values of `perceptual` in the image tokenizer's training config."""

SCALES = 3
"""`gradient-ssim` compares at full, half and quarter resolution."""
WINDOW = 5
"""Side in pixels of SSIM's window."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""

COMPARED_BLOCKS = (0, 2, 4, 7)
"""Blocks of EfficientNet-Lite0 after which features are compared: the last ones at a half, a quarter and an eighth of
the resolution and the first one at a sixteenth. On small pictures deeper features are spatially too coarse to add
information, and they double the cost."""
DITHER = 0.1
"""Standard deviation of a fixed noise added to both pictures. The network amplifies invisible errors on the flat areas
of drawings: without dither, rounding noise of half a byte step is as large a distance as a visible blur."""
MIN_SIDE = 32
"""Side in pixels below which pictures are enlarged: the last compared features of 32 pixels are 2 × 2."""

LPIPS_TRUNK = "vgg16-397923af.pth"
"""File name of torchvision's VGG-16 weights, on which LPIPS is computed."""


def load_distance(name: str, device: torch.device | str = "cpu") -> Distance | None:
    """A perceptual distance by its config name; None for `none`.

    Raises:
        UserError: the name is unknown, or what it needs is not installed.
    """
    if name == "none":
        return None
    if name == "gradient-ssim":
        return gradient_ssim
    if name == "efficientnet-lite0":
        return efficientnet_distance(device)
    if name == "lpips":
        return lpips_distance(device)
    raise UserError(f"unknown perceptual distance {name!r}; expected {', '.join(NAMES)}")


def gradient_ssim(pixels: Tensor, reference: Tensor) -> Tensor:
    """1 - SSIM (Wang et al. 2004) of brightness and its horizontal and vertical gradients, mean over three scales.

    Needs no weights. The gradients penalise blurred outlines, the coarser scales blurred shapes.

    Args:
        pixels: (B, 3, H, W) in [-1, 1]; scales at which a side has `WINDOW` pixels or fewer are left out.
        reference: the same shape.

    Returns:
        (B,) distances.

    Raises:
        UserError: a side has `WINDOW` pixels or fewer at full resolution.
    """
    weights = torch.tensor(LUMINANCE, device=pixels.device)[:, None, None]
    x, y = (((image.float() + 1) / 2 * weights).sum(1, keepdim=True) for image in (pixels, reference))
    scores = []
    for scale in range(SCALES):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        if min(x.shape[-2:]) <= WINDOW:
            break
        scores.append(_ssim(_with_gradients(x), _with_gradients(y)))
    if not scores:
        raise UserError(
            f"gradient-ssim needs pictures of more than {WINDOW} pixels on both sides, "
            f"got {pixels.shape[-2]}×{pixels.shape[-1]}; use larger pictures or another perceptual distance"
        )
    return 1 - torch.stack(scores).mean(0)


def _with_gradients(image: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 3, H - 1, W - 1): the image and its horizontal and vertical differences."""
    corner = image[..., :-1, :-1]
    return torch.cat([corner, image[..., :-1, 1:] - corner, image[..., 1:, :-1] - corner], 1)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM (B,) of images (B, C, H, W) with a range of 1, over uniform windows."""
    mean_x, mean_y = F.avg_pool2d(x, WINDOW, 1), F.avg_pool2d(y, WINDOW, 1)
    var_x = F.avg_pool2d(x * x, WINDOW, 1) - mean_x**2
    var_y = F.avg_pool2d(y * y, WINDOW, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, WINDOW, 1) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def efficientnet_distance(device: torch.device | str = "cpu") -> Distance:
    """Squared distance between EfficientNet-Lite0's features at four depths, normalised at each position.

    As LPIPS (Zhang et al. 2018), but on the network of the `judge` extra and without learned channel weights.

    Raises:
        UserError: the `judge` extra is not installed.
    """
    network = load_efficientnet().to(device)

    def unit_features(pixels: Tensor) -> list[Tensor]:
        noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(0))
        pixels = pixels + DITHER * noise.to(pixels.device)
        if (shorter := min(pixels.shape[-2:])) < MIN_SIDE:
            size = [round(side * MIN_SIDE / shorter) for side in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size, mode="bilinear")
        return [
            x.float() * (x.float().square().sum(1, keepdim=True) + 1e-6).rsqrt()
            for x in network.features_after(pixels, COMPARED_BLOCKS)
        ]

    def distance(pixels: Tensor, reference: Tensor) -> Tensor:
        with torch.no_grad():
            reference_features = unit_features(reference.float())
        pairs = zip(unit_features(pixels.float()), reference_features, strict=True)
        return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in pairs]).mean(0)

    return distance


def lpips_distance(device: torch.device | str = "cpu") -> Distance:
    """LPIPS (Zhang et al. 2018) on VGG-16, from the `lpips` package; never downloads anything.

    Raises:
        UserError: the package or the weights of VGG-16 are missing.
    """
    try:
        import lpips
    except ImportError as error:
        raise need_extra("lpips", "lpips") from error
    trunk = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNK
    if not trunk.is_file():
        raise UserError(
            f"lpips needs the weights of torchvision's VGG-16 in {trunk}, which does not exist and is never "
            f"downloaded; put the file there, or set perceptual to efficientnet-lite0"
        )
    network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    return lambda pixels, reference: network(pixels.float(), reference.float()).flatten()
