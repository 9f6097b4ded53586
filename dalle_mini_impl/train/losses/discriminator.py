"""The discriminator: classifies patches as real or reconstructed (PatchGAN, Isola et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """Pixels (B, 3, H, W) -> one logit for each patch (B, 1, H / 2**n, W / 2**n); positive means real.

    Spectral norm (Miyato et al. 2018) bounds its slope. There is no batch norm, so a picture's logits do not depend
    on the pictures beside it, nor on how a batch is split over processes.

    Args:
        channels: width of each of its n layers, each of which halves the sides.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *channels), channels, strict=False):
            layers += [spectral_norm(nn.Conv2d(before, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        layers.append(spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.contiguous(memory_format=torch.channels_last)).float()
