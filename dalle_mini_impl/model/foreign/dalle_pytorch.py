"""Encoder and decoder of DALLE-pytorch's DiscreteVAE, for imported weights: strided convolutions without norms."""

import torch
from torch import Tensor, nn


class DiscreteVaeResidualBlock(nn.Module):
    """Two 3×3 convolutions and a 1×1. (B, C, h, w) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class Normalise(nn.Module):
    """(x - mean) / std of pixels in [0, 1], applied to pixels in [-1, 1]; `back` is the inverse."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        means = torch.tensor(mean).view(-1, 1, 1)
        stds = torch.tensor(std).view(-1, 1, 1)
        # With the usual mean and std of 0.5 this multiplies by 1 and adds 0, without any rounding.
        self.register_buffer("scale", 0.5 / stds, persistent=False)
        self.register_buffer("shift", (0.5 - means) / stds, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.shift

    def back(self, x: Tensor) -> Tensor:
        """Normalised pixels -> pixels, approximately in [-1, 1]."""
        return (x - self.shift) / self.scale


class DiscreteVaeEncoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> features (B, C, h, w), which `quantizers.Logits` turns into ids.

    Args:
        channels: width of each layer; each halves the resolution. All are C.
        blocks: number of residual blocks after them.
        normalise: applied to the pixels first.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU())
            for inputs, width in zip((3, *channels), channels, strict=False)
        ]
        self.layers = nn.Sequential(*layers, *(DiscreteVaeResidualBlock(channels[-1]) for _ in range(blocks)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(self.normalise(pixels))


class DiscreteVaeDecoder(nn.Module):
    """Vectors (B, D, h, w) of the ids -> pixels (B, 3, H, W), approximately in [-1, 1].

    Arguments as `DiscreteVaeEncoder`; `embed_dim` is D.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int, embed_dim: int, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        inputs = channels[-1] if blocks else embed_dim
        layers: list[nn.Module] = [nn.Conv2d(embed_dim, inputs, 1)] if blocks else []
        layers += [DiscreteVaeResidualBlock(inputs) for _ in range(blocks)]
        layers += [
            nn.Sequential(nn.ConvTranspose2d(before, width, 4, stride=2, padding=1), nn.ReLU())
            for before, width in zip((inputs, *channels[::-1]), channels[::-1], strict=False)
        ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[0], 3, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.normalise.back(self.layers(z))
