"""Judges: what turns pictures into features, so that a drawing can be matched against real art.

Neither has been trained on the art it judges. One is EfficientNet-Lite0 (Tan & Le 2019, in the Lite variant
without squeeze-and-excitation), trained on ImageNet photographs; its weights come with the `judge` extra. The
other has no weights at all, and guards against trusting the first one blindly: the picture itself, made small.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.evaluate.efficientnet import load_efficientnet

Judge: TypeAlias = Callable[[Tensor], Tensor]
"""Pixels (B, 3, H, W) in [-1, 1] -> features (B, D) on the CPU, neither centred nor normalised."""

CHUNK = 16
"""Pictures per pass. On a CPU more is slower, as what lies between the layers no longer fits its cache."""
INPUT_SIZE = 128
"""Side in pixels at which the network looks at pictures. It was trained at 224, where it tells emoji apart
hardly better and takes three times as long."""
RAW_SIZE = 16


FEATURES = 192
"""Of a picture, for judging: the width of the stage before the last."""


def efficientnet_judge(device: torch.device | str = "cpu") -> Judge:
    """EfficientNet-Lite0 as a judge with 192 features.

    Raises:
        UserError: the `judge` extra is not installed, or holds other weights.
    """
    network = load_efficientnet().to(device)

    @torch.inference_mode()
    def judge(pixels: Tensor) -> Tensor:
        parts = [network.features(resize(part.to(device), INPUT_SIZE)).cpu() for part in pixels.split(CHUNK)]
        return torch.cat(parts)

    return judge


def pixel_judge(pixels: Tensor) -> Tensor:
    """The picture itself at 16 × 16: (B, 768)."""
    return resize(pixels, RAW_SIZE).flatten(1).cpu()


def load_judges(device: torch.device | str = "cpu") -> dict[str, Judge]:
    """Both judges by name, the better one first.

    Raises:
        UserError: the `judge` extra is not installed.
    """
    return {"efficientnet": efficientnet_judge(device), "pixels": pixel_judge}


def resize(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, 3, H, W) -> (B, 3, size, size), bicubic with antialiasing."""
    return F.interpolate(pixels.float(), (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
