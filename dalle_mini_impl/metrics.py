"""Picture quality and codebook health, as pure functions."""

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(pixels: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
        reference: the same shape.

    Returns:
        (B,) dB; infinite where the pictures are equal.
    """
    error = (pixels.float() - reference.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error)  # the range of [-1, 1] is 2, its square 4


def ssim(pixels: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each picture (Wang et al. 2004): 11×11 Gaussian window, sigma 1.5.

    Args:
        pixels: (B, 3, H, W) in [-1, 1], H and W at least 11.
        reference: the same shape.

    Returns:
        (B,) in [-1, 1]; 1 where the pictures are equal.
    """
    x, y = (pixels.float() + 1) / 2, (reference.float() + 1) / 2
    offsets = torch.arange(11, dtype=torch.float32, device=x.device) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], window)[:, 0].unflatten(0, values.shape[:2])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))


def count_ids(image_ids: Tensor, codebook_size: int) -> Tensor:
    """How often each id occurs: (K,) int64 on the CPU."""
    return torch.bincount(image_ids.flatten().cpu(), minlength=codebook_size)


def usage(counts: Tensor) -> float:
    """Share of the codebook that occurs at all, 0 to 1."""
    return float((counts > 0).float().mean())


def perplexity(counts: Tensor) -> float:
    """Effective number of ids in use: exp of the entropy of their frequencies, 1 to K."""
    share = counts.double() / counts.sum().clamp(min=1)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
