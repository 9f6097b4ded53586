"""Whether the image tokenizer of a checkpoint is good enough for other pictures than those it was trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.evaluate.judges import efficientnet_judge
from dalle_mini_impl.evaluate.metrics import psnr
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.util.errors import UserError

PICTURES = 256
"""Largest number of pictures that are measured."""
BATCH_SIZE = 32
ENOUGH_GAIN = 2.5
"""Decibels by which reconstructions must be closer to the pictures than one colour per cell is."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerFit:
    """How well an image tokenizer reconstructs some pictures, and what follows for a training on them."""

    pictures: int
    """Number of pictures measured."""
    size: int
    """Their side in pixels."""
    psnr: float
    """Of the reconstructions, dB, mean over pictures."""
    colours_psnr: float
    """Of the pictures with each cell filled with its mean colour: what ids reach that stand for nothing but a colour.
    It says how difficult the pictures are."""
    similarity: float | None
    """Cosine of the centred features of picture and reconstruction by EfficientNet-Lite0, mean over pictures; None
    without the `judge` extra."""
    colours_similarity: float | None
    """The same for the mean colours."""
    reuse: bool
    """Whether to use the image tokenizer as it is; otherwise it should be trained further on these pictures, which
    `start_from` of the image tokenizer stage does."""

    def __str__(self) -> str:
        features = ""
        if self.similarity is not None and self.colours_similarity is not None:
            features = f", similarity of features {self.similarity:.2f} (mean colours {self.colours_similarity:.2f})"
        verdict = "good enough as it is" if self.reuse else "should be trained further on these pictures"
        return (
            f"{self.pictures} pictures of {self.size} px: PSNR {self.psnr:.1f} dB (mean colours of the cells "
            f"{self.colours_psnr:.1f} dB){features}: {verdict}"
        )


def image_tokenizer_fit(
    name: str | Path, data: DataConfig, image_size: int = 0, pictures: int = PICTURES, device: str = "cpu"
) -> ImageTokenizerFit:
    """Measure the image tokenizer of a checkpoint on training pictures, spread evenly over the set.

    Args:
        name: a checkpoint, as for `find_checkpoint`.
        data: names the picture store, which is built if it does not exist yet.
        image_size: side in pixels of the square pictures that the training will use; 0 for the image tokenizer's own
            size.
        pictures: largest number of pictures to measure.
        device: where the image tokenizer computes.

    Raises:
        UserError: the checkpoint or the store cannot be read, or the size does not fit the image tokenizer.
    """
    tokenizer = load_image_tokenizer(name, device)[0]
    size = (image_size, image_size) if image_size else tokenizer.config.size
    store = open_store(data, "train", captions="optional", picture_size=size)
    rows = np.unique(np.linspace(0, len(store) - 1, min(pictures, len(store))).astype(np.int64))
    return measure_fit(tokenizer, pixels_on_white(store.take(rows), size))


@torch.inference_mode()
def measure_fit(tokenizer: ImageTokenizer, pixels: Tensor) -> ImageTokenizerFit:
    """Measure an image tokenizer on pixels (B, 3, H, W) in [-1, 1], H and W multiples of its factor.

    It is good enough if its reconstructions are closer to the pictures than mean colours are: by `ENOUGH_GAIN` in
    pixels, and in features, where the `judge` extra is installed.

    Raises:
        UserError: the sizes are no multiples of the factor.
    """
    decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)).cpu() for part in pixels.split(BATCH_SIZE)])
    factor = tokenizer.config.factor
    colours = F.avg_pool2d(pixels, factor).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    decibels, colours_decibels = (float(psnr(version, pixels).clamp(max=100).mean()) for version in (decoded, colours))
    similarity, colours_similarity = _similarities(pixels, (decoded, colours), tokenizer.device)
    closer = similarity is None or colours_similarity is None or similarity > colours_similarity
    return ImageTokenizerFit(
        pictures=len(pixels),
        size=max(pixels.shape[2:]),
        psnr=decibels,
        colours_psnr=colours_decibels,
        similarity=similarity,
        colours_similarity=colours_similarity,
        reuse=decibels >= colours_decibels + ENOUGH_GAIN and closer,
    )


def _similarities(pixels: Tensor, versions: tuple[Tensor, ...], device: torch.device) -> list[float | None]:
    """Mean cosine between the centred features of pictures and of each version; None without the judge."""
    try:
        judge = efficientnet_judge(device)
    except UserError:
        return [None] * len(versions)
    features = judge.features(pixels)
    centre = features.mean(0)
    return [
        float(F.cosine_similarity(judge.features(version) - centre, features - centre).mean()) for version in versions
    ]
