"""What a scorer's model wants to see: how pictures are cut, resized and normalised, and how its scores are meant."""

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
LONGEST = 32
"""Times its width that a picture may be high, or the other way round, before what is cut off anyhow goes first."""
ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Preprocess:
    """Turns pictures, or pixels with their gradients, into what one model was trained on.

    The defaults are those of the models trained here.

    Raises:
        UserError: a setting is unknown or out of range.
    """

    size: int
    """Side in pixels of the square the model looks at."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of red, green and blue, in [0, 1]; subtracted."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """What the difference from the mean is divided by."""
    interpolation: str = "lanczos"
    """`bilinear`, `bicubic` or `lanczos`, antialiased. Pixels take `bicubic` for `lanczos`, which torch lacks."""
    resize: str = "fit"
    """`fit` cuts the middle square out and resizes it; `crop` resizes the shorter side to `size` and then cuts
    the middle square out; `squash` resizes both sides and cuts nothing."""
    activation: str = "softmax"
    """`softmax`: log-odds compare labels with each other. `sigmoid`: each label has a probability of its own."""

    def __post_init__(self) -> None:
        for name, known in (("interpolation", FILTERS), ("resize", RESIZE_MODES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"preprocess {name} {getattr(self, name)!r} came; expected {', '.join(known)}")
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"preprocess size {self.size}, mean {self.mean}, std {self.std} came; expected 1 pixel or "
                f"more, and three values each, those of std above 0"
            )

    def from_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of any size and mode -> (N, 3, size, size), normalised; transparent parts become white."""
        return self._normalise(to_pixels([self._resized(on_background(image)) for image in images], self.size))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] -> (N, 3, size, size), normalised. Gradients flow back to the pixels."""
        pixels, target = pixels.float(), (self.size, self.size)
        if self.resize == "fit":
            pixels = _middle(pixels, min(pixels.shape[2:]))
        elif self.resize == "crop":
            target = self._shorter_to_size(pixels.shape[2], pixels.shape[3])
        if pixels.shape[2:] != target:
            mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
            pixels = F.interpolate(pixels, size=target, mode=mode, antialias=True).clamp(-1, 1)
        return self._normalise(_middle(pixels, self.size))

    def _resized(self, image: Image.Image) -> Image.Image:
        method, square = FILTERS[self.interpolation], (self.size, self.size)
        if self.resize == "fit":
            return ImageOps.fit(image, square, method)
        if self.resize == "squash":
            return image.resize(square, method)
        longest = LONGEST * min(image.size)  # resizing a long thin picture would fill the memory
        image = _cut(image, min(image.width, longest), min(image.height, longest))
        height, width = self._shorter_to_size(image.height, image.width)
        return _cut(image.resize((width, height), method), *square)

    def _shorter_to_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in the same proportions, rounded down, the shorter being `size`."""
        shorter = min(height, width)
        return self.size * height // shorter, self.size * width // shorter

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels - (2 * mean - 1)) / (2 * std)  # of values in [-1, 1], where mean and std are of [0, 1]


def _middle(pixels: Tensor, side: int) -> Tensor:
    """The middle square of pixels (N, 3, H, W)."""
    height, width = pixels.shape[2:]
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
