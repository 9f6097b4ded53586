"""Cosines, rankings and label probabilities of pictures and texts, by a CLIP-like model and its text tokenizer.

Models with a softmax over texts are as in CLIP (Radford et al. 2021), those with a sigmoid for each pair, which have a
`logit_bias`, as in SigLIP (Zhai et al. 2023).
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import check_trained_with, load_module, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.model import ScorerConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.scorer.adapters import ADAPTERS
from dalle_mini_impl.scorer.preprocess import SQUARE_FITS, Preprocess
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.pixels import check_pixels
from dalle_mini_impl.util.ranking import best_first, check_finite

DIFFERENT_TEXTS = ("a cat", "two dogs")
"""Every CLIP model that can be used embeds these differently."""
Images: TypeAlias = Sequence[Image.Image] | Tensor
"""PIL pictures of any size, or pixels (N, 3, H, W) in [-1, 1] of any size."""


class ClipModel(Protocol):
    """A module that embeds pictures and texts. With a `logit_bias` its scores are sigmoids, without one softmaxes."""

    embed_dim: int
    """D, width of the embeddings."""

    @property
    def logit_scale(self) -> Any:
        """Natural logarithm of the factor of cosines (the inverse temperature), a tensor of one element."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), normalised by the model's `Preprocess` -> (B, D)."""

    def encode_text(self, text_ids: Tensor) -> Tensor:
        """Text ids (B, L) int64 -> (B, D)."""

    def state_dict(self) -> dict[str, Any]:
        """The weights, by name."""

    def to(self, device: Any) -> Any:
        """Move the weights to a device."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""


class TextEncoder(Protocol):
    """A text tokenizer that pads."""

    def encode_batch(self, texts: Sequence[str], length: int, add_eos: bool) -> Tensor:
        """Tokenize texts.

        Args:
            texts: B texts.
            length: L; longer texts are cut, shorter ones padded.
            add_eos: whether to end each text with an end-of-text id, which cutting keeps.

        Returns:
            (B, L) int64.
        """


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores how well pictures fit texts (Radford et al. 2021; Zhai et al. 2023).

    All results are on the CPU, in fp32. The model is moved to `device` and put into evaluation mode. On CUDA pictures
    are embedded in bf16.

    Raises:
        UserError: the preprocess does not belong to the model.
    """

    model: ClipModel
    text_tokenizer: TextEncoder
    preprocess: Preprocess
    """How pictures are prepared for the model, and whether its scores are softmaxes or sigmoids."""
    text_length: int
    """Text ids per caption, end-of-text included; longer texts are cut."""
    device: torch.device | str = "cpu"
    chunk_size: int = 64
    """Pictures or texts per pass through the model, which bounds memory."""
    name: str = ""
    """What `from_pretrained` loaded it by; empty if it was made otherwise."""

    def __post_init__(self) -> None:
        size = getattr(self.model, "image_size", self.preprocess.size)
        if size != self.preprocess.size:
            raise UserError(
                f"expected a preprocess that makes {size} × {size} pixels, the model's input, got one that makes "
                f"{self.preprocess.size}; give the preprocess the model was trained with"
            )
        activation = "softmax" if self._bias is None else "sigmoid"
        if activation != self.preprocess.activation:
            raise UserError(
                f"expected a preprocess with activation {activation}, as the model "
                f"{'has no' if self._bias is None else 'has a'} bias, got {self.preprocess.activation}; "
                f"give the preprocess the model was trained with"
            )
        if not math.isfinite(self.scale) or (self._bias is not None and not math.isfinite(self._bias)):
            raise UserError(
                f"expected a scorer with a finite logit scale and bias, got {self.scale} and {self._bias}; its weights "
                f"are damaged: copy or train it again"
            )
        self.model.to(self.device).eval()

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> "Scorer":
        """Load the scorer of a shipped model or a checkpoint folder, or a model of another library.

        Args:
            name: `emoji`, a checkpoint folder, `hf:FOLDER` or `hf:NAME` (a CLIP or SigLIP of transformers), or
                `open_clip:MODEL:PRETRAINED`. Only models named by their place on a hub use the network.
            device: where to compute.

        Raises:
            UserError: there is no such scorer, the library for it is not installed, or its model and tokenizer do not
                belong together.
        """
        library, _, rest = str(name).partition(":")
        if library in ADAPTERS:
            scorer = cls(*ADAPTERS[library](rest), device, name=str(name))
            first, second = scorer.embed_texts(DIFFERENT_TEXTS)
            if torch.allclose(first, second, rtol=0, atol=1e-6):
                raise UserError(
                    f"expected {name} to embed different texts differently, got equal embeddings of "
                    f"{' and '.join(map(repr, DIFFERENT_TEXTS))}; its tokenizer is missing or another model's, or the "
                    f"eos_token_id of its config is not that of its tokenizer: copy all of its files again"
                )
            return scorer
        folder = find_checkpoint(name)
        part = read_part(folder, "scorer")
        text_tokenizer = TextTokenizer(folder / TEXT_TOKENIZER_FILE)
        check_trained_with(part, "text_tokenizer", text_tokenizer.identity)
        config = from_dict(ScorerConfig, part.config, str(part.path))
        special = {"pad_id": text_tokenizer.pad_id, "eos_id": text_tokenizer.eos_id}
        clip = load_module(lambda: build_clip(config, text_tokenizer.vocab_size, **special), part, device)
        if config.fit not in SQUARE_FITS:
            raise UserError(
                f"expected fit {' or '.join(SQUARE_FITS)} in {part.path}, got {config.fit!r}; train it again"
            )
        activation = "sigmoid" if config.sigmoid else "softmax"
        preprocess = Preprocess(config.image_size, resize=SQUARE_FITS[config.fit], activation=activation)
        return cls(clip, text_tokenizer, preprocess, config.text_length, device, name=str(name))

    @property
    def image_size(self) -> int:
        """Side in pixels of the model's input."""
        return self.preprocess.size

    @property
    def scale(self) -> float:
        """Factor from cosines to logits: the inverse of the learned temperature."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def _bias(self) -> float | None:
        """Added to the scaled cosines of a sigmoid model; None for a softmax model."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias.detach())

    def embed_images(self, images: Images) -> Tensor:
        """Embed pictures.

        Args:
            images: N PIL pictures of any size and mode, or pixels (N, 3, H, W): floating point in [-1, 1], or uint8
                from 0 to 255.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: a tensor has no such pixels, or the argument is neither.
        """
        images = _checked(images)

        def encode(chunk: slice) -> Tensor:
            part = images[chunk]
            if isinstance(part, Tensor):
                pixels = self.preprocess.from_pixels(part)
            else:
                pixels = self.preprocess.from_images(part)
            with self._precision():
                return self.model.encode_image(pixels.to(self.device))

        return _check_embeddings(self._embed(len(images), encode))

    def embed_prepared(self, pixels: Tensor) -> Tensor:
        """Embed pictures that `preprocess` has prepared, which may have been done elsewhere, a few at a time.

        Args:
            pixels: (N, 3, S, S), from `preprocess.from_images`.

        Returns:
            (N, D), L2-normalised; rows that are not finite are left to the caller.
        """

        def encode(chunk: slice) -> Tensor:
            with self._precision():
                return self.model.encode_image(pixels[chunk].to(self.device))

        return self._embed(len(pixels), encode)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embed pixels with gradients, in one pass; the result stays on `device`.

        Args:
            pixels: (N, 3, H, W) in [-1, 1], on any device.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: the tensor is not (N, 3, H, W) floating point.
        """
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            check_pixels(pixels)
            raise UserError(f"expected floating-point pixels in [-1, 1], got {pixels.dtype}; convert them")
        return F.normalize(self.model.encode_image(self.preprocess.from_pixels(pixels.to(self.device))).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: one string was given instead of a sequence.
        """
        _check_texts(texts)

        def encode(chunk: slice) -> Tensor:
            text_ids = self.text_tokenizer.encode_batch(list(texts[chunk]), self.text_length, add_eos=True)
            return self.model.encode_text(text_ids.to(self.device))

        return _check_embeddings(self._embed(len(texts), encode))

    def embed_labels(self, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Embed labels, each put into one or more templates (prompt ensembling, Radford et al. 2021, section 3.1.4).

        Args:
            labels: what pictures may show, such as `"a cat"`.
            templates: texts in which `{}` stands for the label. Several make an ensemble: a label's vector is the
                mean of its normalised vectors, normalised again.

        Returns:
            (number of labels, D), L2-normalised.

        Raises:
            UserError: there is no label or template, or a template has no `{}`.
        """
        _check_texts(labels)
        _check_texts(templates)
        if not labels:
            raise UserError("expected at least one label, got none; give labels such as a cat, a dog")
        if not templates or not all("{}" in template for template in templates):
            raise UserError(
                f"expected at least one template, each with {{}} for the label, got {list(templates)}; "
                f"write for example a picture of {{}}"
            )
        embeds = [self.embed_texts([template.replace("{}", label) for label in labels]) for template in templates]
        return embeds[0] if len(embeds) == 1 else F.normalize(torch.stack(embeds).mean(dim=0), dim=-1)

    def cosines(self, images: Images, text: str) -> Tensor:
        """Cosine (N,) in [-1, 1] between each picture and the text.

        Only differences between pictures are meaningful: good fits have cosines far below 1 with a CLIP model.
        """
        return self.embed_images(images) @ self.embed_texts([text])[0]

    def score(self, images: Images, text: str) -> Tensor:
        """How well each picture fits the text, (N,).

        Cosines of a softmax model; of a sigmoid model (SigLIP) the probability that picture and text belong together.
        """
        return self._to_scores(self.cosines(images, text))

    def rank(self, images: Images, text: str) -> tuple[Tensor, Tensor]:
        """Order pictures by how well they fit the text.

        Returns:
            order: (N,) int64, indices of the pictures, best first; equal cosines keep the given order.
            scores: (N,) as from `score`, in that order: `scores[0]` belongs to `images[order[0]]`.
        """
        return self.rank_embedded(self.embed_images(images), text)

    def rank_embedded(self, image_embed: Tensor, text: str) -> tuple[Tensor, Tensor]:
        """As `rank`, of pictures (N, D) that `embed_images` or `embed_prepared` has embedded."""
        # Sorted by cosines, because probabilities round to 1 where cosines still differ.
        cosines = _check_embeddings(image_embed) @ self.embed_texts([text])[0]
        order = best_first(cosines)
        return order, self._to_scores(cosines[order])

    def classify(self, images: Images, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Probability of each label for each picture (zero-shot classification, Radford et al. 2021).

        Args:
            images: as for `embed_images`.
            labels: what the pictures may show.
            templates: as for `embed_labels`.

        Returns:
            (N, number of labels), as from `probabilities`.

        Raises:
            UserError: there is no label, or a template has no `{}`.
        """
        label_embed = self.embed_labels(labels, templates)
        return self.probabilities(self.embed_images(images), label_embed)

    def probabilities(self, image_embed: Tensor, label_embed: Tensor) -> Tensor:
        """Probability of each label, given that exactly one fits; of a sigmoid model, of each label independently.

        Args:
            image_embed: (N, D), from `embed_images`.
            label_embed: (number of labels, D), from `embed_labels` or `embed_texts`.

        Returns:
            (N, number of labels); rows sum to 1, except those of a sigmoid model.
        """
        advice = "embed them with embed_images and embed_labels"
        cosines = check_finite(image_embed @ label_embed.T, "cosines of embeddings", advice)
        return self._to_scores(cosines) if self._bias is not None else (self.scale * cosines).softmax(dim=-1)

    @property
    def is_on_gpu(self) -> bool:
        """Whether it computes on CUDA."""
        return torch.device(self.device).type == "cuda"

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which pictures are embedded: bf16 on CUDA, the weights' own precision elsewhere."""
        return torch.autocast("cuda", torch.bfloat16) if self.is_on_gpu else contextlib.nullcontext()

    def _to_scores(self, cosines: Tensor) -> Tensor:
        """Probabilities of a sigmoid model, cosines of a softmax model."""
        return cosines if self._bias is None else (self.scale * cosines + self._bias).sigmoid()

    def _embed(self, count: int, encode: Callable[[slice], Tensor]) -> Tensor:
        # Allocated outside inference mode, so that callers may modify the result and use it in training.
        embed = torch.empty(count, self.model.embed_dim)
        with torch.inference_mode():
            for start in range(0, count, self.chunk_size):
                chunk = slice(start, min(start + self.chunk_size, count))
                embed[chunk] = F.normalize(encode(chunk).float(), dim=-1).cpu()
        return embed


def _check_embeddings(embed: Tensor) -> Tensor:
    return check_finite(embed, "embeddings", "the scorer's weights are damaged: copy or train it again")


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UserError(f"expected a list of texts, got the single text {texts!r}; write [{texts!r}]")


def _checked(images: Images) -> Images:
    """Pictures, or floating-point pixels."""
    if isinstance(images, Tensor):
        check_pixels(images)
        return images if images.is_floating_point() else images / 127.5 - 1
    if isinstance(images, Image.Image) or not all(isinstance(image, Image.Image) for image in images):
        raise UserError(
            f"expected a list of PIL pictures or pixels (N, 3, H, W), got {type(images).__name__}; "
            f"put pictures into a list"
        )
    return images
