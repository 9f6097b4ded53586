"""What a reconstruction is held against: the picture's pixels, and how it looks."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.evaluate.perceptual import load_distance
from dalle_mini_impl.model.image_tokenizer import Reconstruction
from dalle_mini_impl.model.logit_laplace import laplace_loss

PictureLoss: TypeAlias = Callable[[Reconstruction, Tensor], dict[str, Tensor]]
"""A reconstruction and its target (B, 3, H, W) -> scalar terms by name, weights included; their sum is the loss."""

JITTER = 3


def build_picture_loss(config: ImageTokenizerRun, device: torch.device) -> PictureLoss:
    """The loss that a config asks for.

    Raises:
        UserError: the perceptual distance is unknown, or what it needs is not installed.
    """
    distance = load_distance(config.perceptual, device)

    def picture_loss(result: Reconstruction, target: Tensor) -> dict[str, Tensor]:
        if config.model.likelihood == "laplace":
            terms = {"reconstruction": laplace_loss(result.decoded, target)}
        else:
            terms = {"reconstruction": reconstruction_loss(result.pixels, target, config.edge)}
        if distance is not None:
            pixels, shown = from_a_random_corner(result.pixels, target)
            terms["perceptual"] = config.perceptual_weight * distance(pixels, shown).mean()
        return terms

    return picture_loss


def from_a_random_corner(*pictures: Tensor) -> list[Tensor]:
    """Cut up to `JITTER` rows and columns off the top and left of pictures (B, 3, H, W), off all of them the same.

    Where a distance halves its sides it sees every other pixel. Decoders learn to hide errors, such as a grid, in
    those it does not see, unless these change (random transformations: Kettunen et al. 2019, E-LPIPS).
    """
    top, left = torch.randint(JITTER + 1, (2,)).tolist()
    return [picture[..., top:, left:] for picture in pictures]


def reconstruction_loss(pixels: Tensor, target: Tensor, edge: float) -> Tensor:
    """L1 + L2 on pixels, plus `edge` × L1 on differences between neighbours.

    Args:
        pixels: (B, 3, H, W) decoded.
        target: (B, 3, H, W) wanted.
        edge: weight of the neighbour differences, in both directions.
    """
    error = pixels.float() - target
    sideways, downwards = error.diff(dim=-1), error.diff(dim=-2)
    return error.abs().mean() + error.square().mean() + edge * (sideways.abs().mean() + downwards.abs().mean())
