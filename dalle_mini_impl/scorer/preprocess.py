"""How pictures are cropped, resized and normalised for a scorer's model, and which activation its scores have."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import on_background, to_pixels

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE_MODES = ("fit", "crop", "squash")
SQUARE_FITS = {"crop": "fit", "squash": "squash"}
"""`ScorerConfig.fit` of the scorers that this package trains -> `Preprocess.resize`."""
MAX_ASPECT = 32
"""With `crop`, a picture longer than this many times its shorter side is cropped to it before it is resized: the rest
would be cropped afterwards in any case, and resizing it could fill the memory."""
ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Preprocess:
    """Turns pictures, or pixels with gradients, into the input of one model.

    The defaults are those of the scorers that this package trains.

    Raises:
        UserError: a setting is unknown or out of range.
    """

    size: int
    """Side in pixels of the model's square input."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of red, green and blue in [0, 1]; subtracted from them."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of red, green and blue; the differences from the mean are divided by it."""
    interpolation: str = "lanczos"
    """`bilinear`, `bicubic` or `lanczos`, antialiased. For pixels `lanczos` is `bicubic`, as torch has no Lanczos."""
    resize: str = "fit"
    """`fit` crops the centre square and resizes it; `crop` resizes the shorter side to `size` and then crops the
    centre square; `squash` resizes both sides and crops nothing."""
    activation: str = "softmax"
    """`softmax`: one probability distribution over all labels. `sigmoid`: an independent probability for each."""

    def __post_init__(self) -> None:
        for name, known in (("interpolation", FILTERS), ("resize", RESIZE_MODES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"expected preprocess {name} {', '.join(known)}, got {getattr(self, name)!r}; choose one of these"
                )
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"expected a preprocess with a size of at least 1 and three values of mean and std each, "
                f"those of std above 0, got size {self.size}, mean {self.mean}, std {self.std}; correct these"
            )

    def from_images(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL pictures of any size and mode -> (N, 3, size, size), normalised; transparent parts become white."""
        return self._normalise(to_pixels([self._resized(on_background(image)) for image in images], self.size))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] -> (N, 3, size, size), normalised. Differentiable."""
        pixels = pixels.float()
        target = (self.size, self.size)
        if self.resize == "fit":
            pixels = _centre_square(pixels, min(pixels.shape[2:]))
        elif self.resize == "crop":
            target = self._shorter_to_size(pixels.shape[2], pixels.shape[3])
        if pixels.shape[2:] != target:
            mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
            pixels = F.interpolate(pixels, size=target, mode=mode, antialias=True).clamp(-1, 1)
        return self._normalise(_centre_square(pixels, self.size))

    def _resized(self, image: Image.Image) -> Image.Image:
        method = FILTERS[self.interpolation]
        square = (self.size, self.size)
        if self.resize == "fit":
            return ImageOps.fit(image, square, method)
        if self.resize == "squash":
            return image.resize(square, method)
        longest = MAX_ASPECT * min(image.size)
        image = _centre_crop(image, min(image.width, longest), min(image.height, longest))
        height, width = self._shorter_to_size(image.height, image.width)
        return _centre_crop(image.resize((width, height), method), *square)

    def _shorter_to_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width scaled so that the shorter one is `size`; the other is rounded down."""
        shorter = min(height, width)
        return self.size * height // shorter, self.size * width // shorter

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels - (2 * mean - 1)) / (2 * std)  # pixels are in [-1, 1], mean and std of [0, 1]


def _centre_square(pixels: Tensor, side: int) -> Tensor:
    """Pixels (N, 3, H, W) -> the centre (N, 3, side, side)."""
    height, width = pixels.shape[2:]
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The centre of a picture."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
