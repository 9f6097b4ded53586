"""The reconstruction loss of the image tokenizer: pixel differences, and optionally a perceptual distance."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.evaluate.perceptual import load_distance
from dalle_mini_impl.model.image_tokenizer import Reconstruction
from dalle_mini_impl.model.logit_laplace import laplace_loss

PictureLoss: TypeAlias = Callable[[Reconstruction, Tensor], dict[str, Tensor]]
"""A reconstruction and its target (B, 3, H, W) -> weighted scalar terms by name; their sum is the loss."""

MAX_CROP = 3
"""Largest number of rows and columns cut off before the perceptual distance. It covers every phase of a distance that
halves height and width twice."""


def build_picture_loss(config: ImageTokenizerRun, device: torch.device) -> PictureLoss:
    """Build the reconstruction loss of a config.

    Raises:
        UserError: the perceptual distance is unknown, or its package is not installed.
    """
    distance = load_distance(config.perceptual, device)

    def picture_loss(result: Reconstruction, target: Tensor) -> dict[str, Tensor]:
        if config.model.likelihood == "laplace":
            terms = {"reconstruction": laplace_loss(result.decoded, target)}
        else:
            terms = {"reconstruction": reconstruction_loss(result.pixels, target, config.edge)}
        if distance is not None:
            pixels, cropped_target = crop_at_random(result.pixels, target)
            terms["perceptual"] = config.perceptual_weight * distance(pixels, cropped_target).mean()
        return terms

    return picture_loss


def crop_at_random(*pictures: Tensor) -> list[Tensor]:
    """Cut 0 to `MAX_CROP` rows and columns off the top and left of pictures (B, 3, H, W), the same off all of them.

    A distance with strided layers weighs some pixels less than others. A decoder learns to hide errors, such as a grid
    pattern, in those pixels unless the crop varies (random transformations as in Kettunen et al. 2019, E-LPIPS).
    """
    top, left = torch.randint(MAX_CROP + 1, (2,)).tolist()
    return [picture[..., top:, left:] for picture in pictures]


def reconstruction_loss(pixels: Tensor, target: Tensor, edge: float) -> Tensor:
    """L1 plus L2 loss on pixels, plus `edge` × L1 loss on differences between neighbouring pixels.

    Args:
        pixels: (B, 3, H, W) decoded pixels, nominally in [-1, 1].
        target: (B, 3, H, W) pixels of the original, in [-1, 1].
        edge: weight of the differences between horizontal and vertical neighbours.

    Returns:
        Scalar.
    """
    error = pixels.float() - target
    horizontal = error.diff(dim=-1).abs().mean()
    vertical = error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + edge * (horizontal + vertical)
