"""Checks that a tensor holds pixels, so that pictures in another range or layout are not taken for them."""

import torch

from dalle_mini_impl.util.errors import UserError

MAX_PIXEL = 8.0
"""Interpolation, noise and decoders leave [-1, 1] by less than this; nearly every picture with values from 0 to 255 by
more."""


def check_pixels(pixels: torch.Tensor) -> None:
    """Refuse tensors that are no pixels (B, 3, H, W) in about [-1, 1], or uint8 ones from 0 to 255.

    Raises:
        UserError: the type or shape is another, or a value is not a number or far out of range.
    """
    if not isinstance(pixels, torch.Tensor):
        raise UserError(
            f"expected a tensor of pixels (B, 3, H, W), got {type(pixels).__name__}; convert pictures with "
            f"util.images.to_pixels"
        )
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise UserError(
            f"expected floating-point pixels in [-1, 1] or uint8 ones from 0 to 255, got {pixels.dtype}; convert them"
        )
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        grey = pixels.ndim == 4 and pixels.shape[1] == 1
        advice = (
            "repeat the channel with pixels.expand(-1, 3, -1, -1)" if grey else "write pixels[None] for one picture"
        )
        raise UserError(f"expected pixels of shape (B, 3, H, W), got a tensor of shape {tuple(pixels.shape)}; {advice}")
    if pixels.is_floating_point() and pixels.numel():
        low, high = torch.stack(pixels.detach().aminmax()).tolist()  # one look, because each waits for the device
        if not -MAX_PIXEL <= low <= high <= MAX_PIXEL:
            raise UserError(
                f"expected pixels in [-1, 1], got values from {low:g} to {high:g}; convert pictures with "
                f"util.images.to_pixels"
            )
