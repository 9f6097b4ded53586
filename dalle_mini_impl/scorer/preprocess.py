"""What a scorer's model wants to see: how pictures are cut, resized and normalised, and how its scores are meant."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.images import on_background, to_pixels

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE_MODES = ("fit", "crop", "squash")
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
            raise UserError(f"preprocess size {self.size}, mean {self.mean}, std {self.std} came; expected a side of at "
                            f"least 1 pixel, and three values each, those of std above 0")  # fmt: skip

    def from_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of any size and mode -> (N, 3, size, size), normalised; transparent parts become white."""
        method, square = FILTERS[self.interpolation], (self.size, self.size)
        rows = [on_background(image).resize(square, method, self._box(*image.size)) for image in images]
        return self._normalise(to_pixels(rows, self.size))

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

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels - (2 * mean - 1)) / (2 * std)  # of values in [-1, 1], where mean and std are of [0, 1]

    def _shorter_to_size(self, height: int, width: int) -> tuple[int, int]:
        """The size with the same proportions, rounded down, whose shorter side is `size`."""
        shorter = min(height, width)
        return self.size * height // shorter, self.size * width // shorter

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What of a picture is resized to the square: left, top, right and bottom, in its own pixels.

        Resizing only this is the same as resizing all and cutting the middle out, and never makes a large picture
        of a long thin one.
        """
        if self.resize == "squash":
            return 0, 0, width, height
        if self.resize == "fit":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return left, top, left + side, top + side
        new_height, new_width = self._shorter_to_size(height, width)
        left, right = _middle_of(new_width, self.size, width / new_width)
        top, bottom = _middle_of(new_height, self.size, height / new_height)
        return left, top, min(right, width), min(bottom, height)


def _middle(pixels: Tensor, side: int) -> Tensor:
    """The middle square of pixels (N, 3, H, W)."""
    height, width = pixels.shape[2:]
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


def _middle_of(length: int, part: int, scale: float) -> tuple[float, float]:
    """Where the middle `part` of a resized side starts and ends on the side before, `scale` times as long."""
    start = (length - part) // 2
    return start * scale, (start + part) * scale
