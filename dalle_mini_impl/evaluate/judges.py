"""Judges: networks that turn pictures into features, by which generated pictures are compared with real ones.

A judge must not have been trained on the pictures it measures. There are several, so that no result rests on one alone:
EfficientNet-Lite0 and EfficientNet-Lite2 (Tan & Le 2019, in the Lite variant without squeeze-and-excitation), trained
on ImageNet photographs, whose weights come with the `judge` extra; and the picture itself at 16 × 16 pixels, which has
no weights. An image tokenizer trained with `perceptual: efficientnet-lite0` had the first in its loss: then the second
counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.parts import weights_identity
from dalle_mini_impl.evaluate.efficientnet import STAGES, load_efficientnet
from dalle_mini_impl.util.errors import UserError

BATCH_SIZE = 16
"""Pictures per pass through the network. On a CPU larger batches are slower: activations no longer fit its cache."""
INPUT_SIZE = 128
"""Side in pixels of EfficientNet's input. Lite0 was trained at 224 pixels, at which it distinguishes emoji hardly
better and takes three times as long; Lite2 at 260."""
PIXEL_SIZE = 16
"""Side in pixels of the pixel judge's picture."""
FEATURE_DIM = STAGES["lite0"][-2][-1]
"""Features of EfficientNet-Lite0: the width of its stage before the last."""


@dataclass(frozen=True)
class Judge:
    """A feature extractor."""

    name: str
    identity: str
    """Text that names everything the features depend on, such as the hash of the weights; keys the feature cache. It
    must change with every change of `features` that changes a value."""
    features: Callable[[Tensor], Tensor]
    """Pixels (B, 3, H, W) in [-1, 1] -> features (B, D) on the CPU, neither centred nor normalised."""


def load_judges(device: torch.device | str = "cpu") -> dict[str, Judge]:
    """All judges by name, EfficientNet-Lite0 first.

    Raises:
        UserError: the `judge` extra is not installed, or holds other weights.
    """
    judges = (efficientnet_judge(device), efficientnet_judge(device, "lite2"), pixel_judge())
    return {judge.name: judge for judge in judges}


def best_judge(device: torch.device | str = "cpu") -> tuple[Judge, str]:
    """EfficientNet-Lite0, or the bare pixels where its weights are missing.

    Returns:
        The judge, and a line that says what is missing and what that costs; empty if nothing is.
    """
    try:
        return efficientnet_judge(device), ""
    except UserError as error:
        return pixel_judge(), f"judged by bare pixels, which see colours and layout more than shapes: {error}"


def efficientnet_judge(device: torch.device | str = "cpu", variant: str = "lite0") -> Judge:
    """EfficientNet as a judge, with 192 features or those 208 of Lite2, computed in batches of `BATCH_SIZE`.

    Args:
        device: where to compute.
        variant: `lite0`, named `efficientnet`, or `lite2`, named `efficientnet-lite2`.

    Raises:
        UserError: the `judge` extra is not installed, or holds other weights.
    """
    network = load_efficientnet(variant)
    weights, width = weights_identity(network.state_dict()), STAGES[variant][-2][-1]
    identity = f"efficientnet-{variant} {weights}, {width} features at {INPUT_SIZE} px"
    network.to(device)

    @torch.inference_mode()
    def features(pixels: Tensor) -> Tensor:
        batches = pixels.split(BATCH_SIZE)
        return torch.cat([network.features(resize(batch.to(device), INPUT_SIZE)).cpu() for batch in batches])

    return Judge("efficientnet" if variant == "lite0" else f"efficientnet-{variant}", identity, features)


def pixel_judge() -> Judge:
    """The picture itself as a judge without weights."""
    return Judge("pixels", f"pixels at {PIXEL_SIZE} px, bicubic", pixel_features)


def pixel_features(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> the picture at 16 × 16, (B, 768) on the CPU."""
    return resize(pixels, PIXEL_SIZE).flatten(1).cpu()


def resize(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, 3, H, W) -> (B, 3, size, size), bicubic with antialiasing, clamped to [-1, 1]."""
    return F.interpolate(pixels.float(), (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
