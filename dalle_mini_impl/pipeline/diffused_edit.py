"""Edits by a diffusion decoder: a picture as its noise, and the pictures of other embeddings from the same noise."""

import base64
import io
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.stream import check_ids
from dalle_mini_impl.sampling.generate import Progress, no_progress
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder, Wanted
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import decode_image, to_images

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.manipulations import EditRecord

SEED = 0
"""Of the noise with which the pictures of an edit are enlarged."""


def describe_picture(decoder: DiffusionDecoder, picture: Image.Image) -> dict[str, Any]:
    """What an `EditRecord` has of a picture: `image_ids` for a decoder of latents, `pixels` for one of pixels."""
    scaled = decoder.encode(picture)
    if decoder.image_tokenizer is not None:
        return {"image_ids": decoder.finish(scaled, [SEED]).image_ids[0].tolist()}
    (image,) = to_images(decoder.network.unscale(scaled.to(decoder.device)))
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"pixels": base64.b64encode(file.getvalue()).decode()}


def redraw_diffused(
    decoder: DiffusionDecoder, record: "EditRecord", embeds: list[list[float]], progress: Progress = no_progress
) -> tuple[list[Image.Image], Tensor]:
    """Draw the picture of a record again from its own noise, given other embeddings.

    Args:
        decoder: the one that was chosen.
        record: what the edit is made of.
        embeds: n embeddings (D,), the first that of the picture.
        progress: called with 1 each time that the decoder predicts.

    Returns:
        n RGB pictures, and their image ids (n, h, w), (n, 0, 0) where pixels are diffused.

    Raises:
        UserError: the record has no picture of the decoder's size, or a setting is out of range.
    """
    sampling = SamplingConfig(sampler="ddim", steps=record.sampler_steps, guidance=record.guidance)
    decoder.check_settings(sampling)
    scaled = _recorded(decoder, record)
    noise = decoder.invert(scaled, Wanted(embeds[:1], record.prompt), sampling, progress)
    drawn = []
    for numbers in embeds:
        found = decoder.denoise(Wanted([numbers], record.prompt), noise, sampling, [torch.Generator()], progress)
        drawn.append(decoder.finish(found, [SEED]))
    pixels, image_ids = (torch.cat([getattr(one, name) for one in drawn]) for name in ("pixels", "image_ids"))
    return to_images(pixels), image_ids


def _recorded(decoder: DiffusionDecoder, record: "EditRecord") -> Tensor:
    """The picture of a record, scaled: (1, C, h, w)."""
    side = decoder.network.side
    if decoder.image_tokenizer is not None:
        rows = record.image_ids
        if len(rows) != side or any(len(row) != side for row in rows):
            raise UserError(
                f"expected {side} rows of {side} image ids in the record of an edit, got others; edit again"
            )
        if any(not 0 <= one < decoder.image_tokenizer.codebook_size for row in rows for one in row):
            raise UserError(
                f"expected image ids below {decoder.image_tokenizer.codebook_size} in the record of an edit, got "
                f"others; edit again"
            )
        return decoder.from_ids(check_ids(torch.tensor([rows]), decoder.image_tokenizer.codebook_size, "image"))
    try:
        image = decode_image(io.BytesIO(base64.b64decode(record.pixels, validate=True)))
    except Exception as error:  # decoders of pictures raise almost any exception on damaged data
        raise UserError(
            "expected a PNG in base64 as pixels in the record of an edit, got others; edit again"
        ) from error
    if image.size != (side, side):
        raise UserError(
            f"expected a picture of {side}×{side} pixels in the record of an edit, got {image.width}×{image.height}; "
            f"edit again"
        )
    return decoder.encode(image)
