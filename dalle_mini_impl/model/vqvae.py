"""Encoder and decoder of the VQ-VAE.

Both work at reduced resolution throughout: a pixel-unshuffle stem folds n×n pixels into channels before the first
convolution, and a pixel-shuffle unfolds them after the last. Residual blocks at full resolution would take most of the
time and improve little at these sizes.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
"""Groups of the group norms, unless there are fewer channels."""


def stem_factor(factor: int, stages: int) -> int:
    """Side n of the square of pixels that the stem folds into channels; stages halve the resolution in between."""
    return factor // 2 ** (stages - 1)


class OneKernelConv2d(nn.Conv2d):
    """A convolution that rounds alike however many pictures there are, and is faster for a single one.

    On a CPU PyTorch takes another algorithm for small batches, which depends on the number of threads, too. Without
    gradients this one always takes oneDNN's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self._can_take_onednn(x):
            return super().forward(x)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)

    def _can_take_onednn(self, x: Tensor) -> bool:
        is_plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        is_changed = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
        return is_plain and not is_changed and self.padding_mode == "zeros" and torch.backends.mkldnn.is_available()


class ResidualBlock(nn.Module):
    """Pre-norm residual block: GroupNorm, 3×3 convolution, SiLU, 3×3 convolution. (B, C, h, w) -> same.

    One norm instead of the usual two: on a CPU a GroupNorm takes a third of the time of a convolution.
    """

    def __init__(self, channels: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(GROUPS, channels), channels, eps=1e-6)
        self.conv1 = conv(channels, channels, 3, padding=1)
        self.conv2 = conv(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # every block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


class VqvaeEncoder(nn.Module):
    """Pixels (B, 3, H, W) -> z (B, D, h, w)."""

    def __init__(self, factor: int, channels: tuple[int, ...], blocks: int, embed_dim: int) -> None:
        super().__init__()
        stem = stem_factor(factor, len(channels))
        layers: list[nn.Module] = [nn.PixelUnshuffle(stem), nn.Conv2d(3 * stem**2, channels[0], 3, padding=1)]
        for stage, width in enumerate(channels):
            if stage:
                layers.append(nn.Conv2d(channels[stage - 1], width, 2, stride=2))
            layers += [ResidualBlock(width) for _ in range(blocks)]
        layers += [nn.GroupNorm(min(GROUPS, channels[-1]), channels[-1], eps=1e-6), nn.SiLU()]
        layers.append(nn.Conv2d(channels[-1], embed_dim, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class VqvaeDecoder(nn.Module):
    """z (B, D, h, w) -> pixels (B, 3, H, W), or `out` channels instead of 3."""

    def __init__(self, factor: int, channels: tuple[int, ...], blocks: int, embed_dim: int, out: int = 3) -> None:
        super().__init__()
        stem = stem_factor(factor, len(channels))
        layers: list[nn.Module] = [OneKernelConv2d(embed_dim, channels[-1], 3, padding=1)]
        for stage in reversed(range(len(channels))):
            layers += [ResidualBlock(channels[stage], OneKernelConv2d) for _ in range(blocks)]
            if stage:
                layers += [OneKernelConv2d(channels[stage], 4 * channels[stage - 1], 1), nn.PixelShuffle(2)]
        layers += [nn.GroupNorm(min(GROUPS, channels[0]), channels[0], eps=1e-6), nn.SiLU()]
        layers += [OneKernelConv2d(channels[0], out * stem**2, 3, padding=1), nn.PixelShuffle(stem)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def enlarged_weights(weights: dict[str, Tensor], stem: int, times: int) -> dict[str, Tensor]:
    """Weights of a VQ-VAE for networks whose stem is `times` as wide and high: the same ids, for larger pictures.

    The first convolution sees the mean of each square of `times` × `times` pixels, the last one repeats each pixel as
    often. So pictures that were enlarged by repeating pixels are encoded and decoded as before.

    Args:
        weights: of encoder, decoder and quantizer, by name.
        stem: side of the square of pixels that their stem folds.
        times: 1 changes nothing.
    """
    last = max(int(name.split(".")[2]) for name in weights if name.startswith("decoder."))
    side = torch.arange(stem * times) // times
    sources = (side[:, None] * stem + side).flatten()
    enlarged = dict(weights)
    first = "encoder.layers.1.weight"
    folded = weights[first].unflatten(1, (-1, stem**2))[:, :, sources]
    enlarged[first] = folded.flatten(1, 2) / times**2
    for name in (f"decoder.layers.{last}.weight", f"decoder.layers.{last}.bias"):
        enlarged[name] = weights[name].unflatten(0, (-1, stem**2))[:, sources].flatten(0, 1)
    return enlarged


def channels_last(module: nn.Module) -> nn.Module:
    """Convert weights to the channels-last memory format, for which CPUs and GPUs have faster convolutions."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
