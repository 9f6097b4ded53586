"""Encoder and decoder of DALL-E 1's dVAE (Ramesh et al. 2021, appendix A), for OpenAI's weights.

Residual blocks of four convolutions, with ReLU before each and no norm; each residual is divided by the squared number
of blocks.
"""

from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 0.1
"""Pixels are mapped from [0, 1] to [EPSILON, 1 - EPSILON], as the logit-Laplace density is undefined at 0 and 1."""


class OpenAIResidualBlock(nn.Module):
    """(B, inputs, h, w) -> (B, width, h, w).

    Args:
        inputs: width before.
        width: width after; inside it is a quarter of this.
        kernels: kernel size of each of the four convolutions.
        gain: factor of the residual.
    """

    def __init__(self, inputs: int, width: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        widths = (inputs, width // 4, width // 4, width // 4, width)
        self.gain = gain
        self.conv = nn.ModuleList(
            nn.Conv2d(before, after, side, padding=side // 2)
            for before, after, side in zip(widths, widths[1:], kernels, strict=False)
        )
        self.id_path = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.conv:
            h = conv(F.relu(h))
        return self.id_path(x) + self.gain * h


def groups(inputs: int, widths: tuple[int, ...], blocks: int, kernels: tuple[int, ...]) -> nn.ModuleList:
    """A group of `blocks` residual blocks for each width; with n blocks in total residuals are scaled by 1/n²."""
    gain = 1 / (len(widths) * blocks) ** 2
    return nn.ModuleList(
        nn.Sequential(
            *(OpenAIResidualBlock(width if block else before, width, kernels, gain) for block in range(blocks))
        )
        for before, width in zip((inputs, *widths), widths, strict=False)
    )


class OpenAIEncoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> features (B, C, h, w), which `quantizers.Logits` turns into ids.

    Args:
        channels: width of each group, finest first; each but the last halves the resolution. The last is C.
        blocks: residual blocks per group.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, channels[0], 7, padding=3)
        self.groups = groups(channels[0], channels, blocks, (3, 3, 3, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.input((1 - 2 * EPSILON) * ((pixels + 1) / 2) + EPSILON)
        for number, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if number else x)
        return F.relu(x)


class OpenAIDecoder(nn.Module):
    """Vectors (B, D, h, w) of the ids -> (B, 6, H, W), which `logit_laplace.mean_pixels` turns into pixels.

    Args:
        channels: width of each group, finest first.
        blocks: residual blocks per group.
        embed_dim: D.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int, embed_dim: int) -> None:
        super().__init__()
        self.groups = groups(embed_dim, channels[::-1], blocks, (1, 3, 3, 3))
        self.output = nn.Conv2d(channels[0], 6, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = z
        for number, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2.0, mode="nearest") if number else x)
        return self.output(F.relu(x))
