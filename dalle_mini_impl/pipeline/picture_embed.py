"""An image embedding that says what to draw: given as numbers or as a picture, and written as text into files."""

import base64
import binascii
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
from dalle_mini_impl.util.errors import UserError

Embedding: TypeAlias = Tensor | np.ndarray | Sequence[float]
"""(D,) numbers; their length makes no difference."""
ENCODED = np.dtype("<f4")
"""Numbers of an embedding as text."""


def to_numbers(
    given: Embedding | Image.Image | None, scorer: Scorer | None, drawer: Stream | DiffusionDecoder
) -> tuple[float, ...]:
    """The numbers of an embedding, in fp32.

    Args:
        given: an embedding, a picture of any size and mode, or None.
        scorer: embeds a picture: that with which the transformer was trained.
        drawer: layout of the transformer's stream, or the diffusion decoder that draws the picture.

    Returns:
        (D,), empty for None.

    Raises:
        UserError: it is something else, it is not one embedding of the model's width, finite and not zero, the stream
            has no positions for one, or there is no scorer for a picture.
    """
    if given is None:
        return ()
    drawer.check_takes_embeddings()
    if isinstance(given, Image.Image):
        if scorer is None:
            raise UserError(
                "expected a checkpoint with the scorer that the transformer was trained with, got one without; copy "
                "scorer.safetensors into it, or give an embedding in place of a picture"
            )
        given = scorer.embed_images([given])[0]
    try:
        numbers = torch.as_tensor(given).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"expected numbers or a PIL picture as image_embed, got {type(given).__name__}; embed the picture first"
        ) from error
    if numbers.ndim != 1 or not len(numbers):
        raise UserError(
            f"expected an image embedding of shape (D,), got {tuple(numbers.shape)}; call generate once for each"
        )
    drawer.embeddings([numbers.tolist()])
    return tuple(numbers.tolist())


def to_text(numbers: Sequence[float]) -> str:
    """Numbers in fp32 as text, which `from_text` reads exactly."""
    return base64.b64encode(np.asarray(numbers, ENCODED).tobytes()).decode()


def from_text(text: str) -> tuple[float, ...]:
    """The numbers that `to_text` wrote.

    Raises:
        UserError: the text is something else.
    """
    try:
        return tuple(np.frombuffer(base64.b64decode(text, validate=True), ENCODED).tolist())
    except (binascii.Error, ValueError) as error:
        raise UserError(f"expected numbers in base64 as image_embed, got other text ({error})") from error
