"""Encoder and decoder of the VQGAN (Esser et al. 2021), which latent diffusion's VQ models and LlamaGen also use.

For imported weights: all constants are those of the originals.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    """The norm of all layers; `channels` is a multiple of 32."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class TamingResidualBlock(nn.Module):
    """Norm, SiLU and 3×3 convolution, twice. (B, inputs, h, w) -> (B, width, h, w)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm2 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class TamingAttention(nn.Module):
    """Residual attention with one head among all cells. (B, C, h, w) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        q, k, v = (rearrange(layer(z), "B C h w -> B 1 (h w) C") for layer in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(z, "B 1 (h w) C -> B C h w", h=x.shape[-2]))


class TamingDownsample(nn.Module):
    """(B, C, h, w) -> (B, C, h/2, w/2), padded only on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class TamingUpsample(nn.Module):
    """(B, C, h, w) -> (B, C, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TamingStage(nn.Module):
    """Residual blocks at one resolution, each followed by attention if `attend`, then a change of resolution."""

    def __init__(self, inputs: int, width: int, blocks: int, attend: bool, resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(TamingResidualBlock(width if number else inputs, width) for number in range(blocks))
        self.attn = nn.ModuleList(TamingAttention(width) if attend else nn.Identity() for _ in range(blocks))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        return self.resample(x)


def middle(width: int, attend: bool) -> nn.Sequential:
    """The layers between the stages and the quantizer."""
    attention = TamingAttention(width) if attend else nn.Identity()
    return nn.Sequential(TamingResidualBlock(width, width), attention, TamingResidualBlock(width, width))


class TamingEncoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> z (B, D, h, w).

    Args:
        channels: width of each stage, finest first; each but the last halves the resolution.
        blocks: residual blocks per stage.
        embed_dim: D.
        stem: width before the first stage.
        z_channels: width before the last convolution.
        attention: stages with attention.
        middle_attention: whether the middle has attention.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        embed_dim: int,
        *,
        stem: int,
        z_channels: int,
        attention: tuple[int, ...],
        middle_attention: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, stem, 3, padding=1)
        self.stages = nn.ModuleList()
        for stage, (inputs, width) in enumerate(zip((stem, *channels), channels, strict=False)):
            resample = TamingDownsample(width) if stage < len(channels) - 1 else nn.Identity()
            self.stages.append(TamingStage(inputs, width, blocks, stage in attention, resample))
        self.mid = middle(channels[-1], middle_attention)
        self.norm_out = norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for stage in self.stages:
            x = stage(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class TamingDecoder(nn.Module):
    """z (B, D, h, w) -> pixels (B, 3, H, W), approximately in [-1, 1].

    Arguments as `TamingEncoder`; stages are finest first here, too.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        embed_dim: int,
        *,
        z_channels: int,
        attention: tuple[int, ...],
        middle_attention: bool,
    ) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.conv_in = nn.Conv2d(z_channels, channels[-1], 3, padding=1)
        self.mid = middle(channels[-1], middle_attention)
        self.stages = nn.ModuleList()
        for stage, (width, inputs) in enumerate(zip(channels, (*channels[1:], channels[-1]), strict=True)):
            resample = TamingUpsample(width) if stage else nn.Identity()
            self.stages.append(TamingStage(inputs, width, blocks, stage in attention, resample))
        self.norm_out = norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for stage in reversed(self.stages):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))
