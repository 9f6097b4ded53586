"""The discriminator of a VQGAN: classifies patches as real or reconstructed (PatchGAN, Isola et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """Pixels (B, 3, H, W) -> one logit per patch (B, 1, H / 2**n, W / 2**n); positive means real.

    Spectral norm (Miyato et al. 2018) bounds each layer's Lipschitz constant. There is no batch norm, so the logits of
    a picture depend neither on the rest of the batch nor on how it is split over processes.

    Args:
        channels: width of each of the n layers, each of which halves height and width.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in zip((3, *channels), channels, strict=False):
            layers.append(spectral_norm(nn.Conv2d(width_in, width_out, 4, stride=2, padding=1)))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.contiguous(memory_format=torch.channels_last)).float()
