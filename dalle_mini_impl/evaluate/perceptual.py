"""Perceptual distances between pictures, by name: what training may minimise besides the error of single pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.evaluate.judges import load_efficientnet
from dalle_mini_impl.util.errors import UserError, need_extra

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Pixels (B, 3, H, W) in [-1, 1] and a reference of that shape -> (B,) distances, 0 where they are equal;
differentiable in the first."""

NAMES = ("none", "gradient-ssim", "efficientnet-lite0", "lpips")

SCALES, WINDOW = 3, 5
LUMINANCE = (0.299, 0.587, 0.114)

TAPS = (0, 2, 4, 7)
"""Blocks after which EfficientNet-Lite0's features are compared: the last at a half, quarter, eighth and the first
at a sixteenth of the resolution. Deeper ones see little in small pictures and cost as much again."""
DITHER = 0.1
"""Spread of a fixed noise that is added to both pictures. On flat areas, of which drawings consist, the network makes
much of errors too small to see: without it, noise of half a step of a byte is as far as a visible blur."""
SMALLEST = 32
"""Side in pixels below which pictures are enlarged, as there would be nothing left to compare at the last tap."""

LPIPS_TRUNK = "vgg16-397923af.pth"


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
    """1 - SSIM (Wang et al. 2004) of brightness and of its slopes sideways and downwards, mean over three scales.

    Needs no weights. The slopes make blurred outlines count, the scales blurred shapes.
    """
    weights = torch.tensor(LUMINANCE, device=pixels.device)[:, None, None]
    x, y = (((image.float() + 1) / 2 * weights).sum(1, keepdim=True) for image in (pixels, reference))
    scores = []
    for scale in range(SCALES):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        if min(x.shape[-2:]) <= WINDOW:
            break
        scores.append(_ssim(_with_slopes(x), _with_slopes(y)))
    if not scores:
        raise UserError(
            f"pictures of {pixels.shape[-2]}×{pixels.shape[-1]} pixels were given; "
            f"gradient-ssim needs more than {WINDOW} on both sides"
        )
    return 1 - torch.stack(scores).mean(0)


def _with_slopes(image: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 3, H - 1, W - 1): itself and its differences in both directions."""
    corner = image[..., :-1, :-1]
    return torch.cat([corner, image[..., :-1, 1:] - corner, image[..., 1:, :-1] - corner], 1)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    mean_x, mean_y = F.avg_pool2d(x, WINDOW, 1), F.avg_pool2d(y, WINDOW, 1)
    var_x = F.avg_pool2d(x * x, WINDOW, 1) - mean_x**2
    var_y = F.avg_pool2d(y * y, WINDOW, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, WINDOW, 1) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def efficientnet_distance(device: torch.device | str = "cpu") -> Distance:
    """Squared distance of EfficientNet-Lite0's features at four depths, each place's features at unit length.

    As LPIPS (Zhang et al. 2018), but with the network of the `judge` extra and without learned weights.

    Raises:
        UserError: the `judge` extra is not installed.
    """
    network = load_efficientnet().to(device)

    def directions(pixels: Tensor) -> list[Tensor]:
        noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(0))
        pixels = pixels + DITHER * noise.to(pixels.device)
        if (shorter := min(pixels.shape[-2:])) < SMALLEST:
            size = [round(side * SMALLEST / shorter) for side in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size, mode="bilinear")
        return [
            x.float() * (x.float().square().sum(1, keepdim=True) + 1e-6).rsqrt() for x in network.taps(pixels, TAPS)
        ]

    def distance(pixels: Tensor, reference: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = directions(reference.float())
        pairs = zip(directions(pixels.float()), wanted, strict=True)
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
            f"lpips needs the weights of torchvision's VGG-16 in {trunk}, which is not there and is not "
            f"downloaded; put it there, or set perceptual to efficientnet-lite0"
        )
    network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    return lambda pixels, reference: network(pixels.float(), reference.float()).flatten()
