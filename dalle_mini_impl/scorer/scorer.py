"""Pictures and texts -> cosines, rankings and label probabilities, by a CLIP model and its text tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.images import to_pixels
from dalle_mini_impl.scorer.clip import CLIP
from dalle_mini_impl.text_tokenizer import TextTokenizer

Images: TypeAlias = Sequence[Image.Image] | Tensor
"""PIL pictures of any size, or pixels (N, 3, H, W) in [-1, 1] of any size."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Judges how well pictures fit texts. Everything it returns lies on the CPU, in fp32.

    The model is moved to `device` and put into eval mode.
    """

    model: CLIP
    text_tokenizer: TextTokenizer
    image_size: int
    """Side in pixels at which the model looks at pictures; others are cropped to a square and resized."""
    text_length: int
    """Text ids per caption, end-of-text included; longer texts are cut."""
    device: torch.device | str = "cpu"
    chunk_size: int = 64
    """Pictures or texts per pass through the model, which bounds memory."""

    def __post_init__(self) -> None:
        self.model.to(self.device).eval()

    @classmethod
    def from_pretrained(cls, name: str, device: str = "cpu") -> "Scorer":
        """The scorer of a shipped model or a checkpoint folder."""
        from dalle_mini_impl.checkpoint import load_scorer

        return load_scorer(name, device)

    @property
    def scale(self) -> float:
        """What cosines are multiplied with to become log-odds: the inverse of the learned temperature."""
        return float(self.model.logit_scale.detach().exp())

    def embed_images(self, images: Images) -> Tensor:
        """Embed pictures.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: a tensor is not (N, 3, H, W) floating point, or something else than pictures came.
        """
        _check_images(images)

        def encode(chunk: slice) -> Tensor:
            part = images[chunk]
            size = self.image_size
            pixels = _resize(part, size) if isinstance(part, Tensor) else to_pixels(part, size)
            return self.model.encode_image(pixels.to(self.device))

        return self._embed(len(images), encode)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: one string came instead of several.
        """
        if isinstance(texts, str):
            raise UserError(f"the single text {texts!r} came; give a list of texts, such as [{texts!r}]")

        def encode(chunk: slice) -> Tensor:
            text_ids = self.text_tokenizer.encode_batch(list(texts[chunk]), self.text_length, end=True)
            return self.model.encode_text(text_ids.to(self.device))

        return self._embed(len(texts), encode)

    def score(self, images: Images, text: str) -> Tensor:
        """Cosine (N,) in [-1, 1] between each picture and the text.

        Only differences between pictures mean something: good fits of a CLIP model lie far below 1.
        """
        return self.embed_images(images) @ self.embed_texts([text])[0]

    def rank(self, images: Images, text: str) -> tuple[Tensor, Tensor]:
        """Order pictures by how well they fit the text.

        Returns:
            order: (N,) int64, numbers of the pictures, best first; equal scores keep the given order.
            scores: (N,) cosines in that order, so `scores[0]` belongs to `images[order[0]]`.
        """
        scores, order = torch.sort(self.score(images, text), descending=True, stable=True)
        return order, scores

    def classify(self, images: Images, labels: Sequence[str]) -> Tensor:
        """Probability of each label for each picture, given that exactly one of the labels fits.

        Returns:
            (N, number of labels); rows sum to 1.

        Raises:
            UserError: there is no label.
        """
        if not labels:
            raise UserError("0 labels came; give at least one, better two or more to choose from")
        cosines = self.embed_images(images) @ self.embed_texts(labels).T
        return (self.scale * cosines).softmax(dim=-1)

    def _embed(self, count: int, encode: Callable[[slice], Tensor]) -> Tensor:
        # Made outside inference mode, so that callers may change the result and use it in training.
        embed = torch.empty(count, self.model.embed_dim)
        with torch.inference_mode():
            for start in range(0, count, self.chunk_size):
                chunk = slice(start, min(start + self.chunk_size, count))
                embed[chunk] = F.normalize(encode(chunk).float(), dim=-1).cpu()
        return embed


def _check_images(images: Images) -> None:
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"a tensor of shape {tuple(images.shape)} and type {images.dtype} came; give pixels "
                f"(N, 3, H, W), floating point in [-1, 1]"
            )
    elif isinstance(images, Image.Image) or not all(isinstance(image, Image.Image) for image in images):
        raise UserError(f"{type(images).__name__} came; give a list of PIL pictures or pixels (N, 3, H, W)")


def _resize(pixels: Tensor, size: int) -> Tensor:
    """Crop the middle square and resize it, antialiased, as `to_pixels` does with PIL pictures."""
    height, width = pixels.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[:, :, top : top + side, left : left + side].float()
    if side == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
