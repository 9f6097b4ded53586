"""Pictures and texts -> cosines, rankings and label probabilities, by a CLIP-like model and its text tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import check_trained_with, load_weights, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.model import ScorerConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.scorer.adapters import ADAPTERS
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError

Images: TypeAlias = Sequence[Image.Image] | Tensor
"""PIL pictures of any size, or pixels (N, 3, H, W) in [-1, 1] of any size."""


class ClipModel(Protocol):
    """A module that embeds pictures and texts. One with `logit_bias` is read by sigmoid, one without by softmax."""

    embed_dim: int
    """D, width of what both methods return."""

    @property
    def logit_scale(self) -> Any:
        """Logarithm of what cosines are multiplied with, of one element."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) -> (B, D)."""

    def encode_text(self, text_ids: Tensor) -> Tensor:
        """(B, L) int64 -> (B, D)."""

    def state_dict(self) -> dict[str, Any]:
        """The weights, by name."""

    def to(self, device: Any) -> Any:
        """Move the weights."""

    def eval(self) -> Any:
        """Stop dropout."""


class TextEncoder(Protocol):
    """A text tokenizer."""

    def encode_batch(self, texts: Sequence[str], length: int, add_eos: bool) -> Tensor:
        """Texts -> (B, L) int64, cut to `length`; `end` asks for an end-of-text that survives the cut."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Judges how well pictures fit texts. Everything it returns lies on the CPU, in fp32.

    The model is moved to `device` and put into eval mode.

    Raises:
        UserError: the preprocess is not that of the model.
    """

    model: ClipModel
    text_tokenizer: TextEncoder
    preprocess: Preprocess
    """What the model wants to see, and how its scores are meant."""
    text_length: int
    """Text ids per caption, end-of-text included; longer texts are cut."""
    device: torch.device | str = "cpu"
    chunk_size: int = 64
    """Pictures or texts per pass through the model, which bounds memory."""

    def __post_init__(self) -> None:
        size = getattr(self.model, "image_size", self.preprocess.size)
        if size != self.preprocess.size:
            raise UserError(
                f"the model looks at {size} × {size} pixels, its preprocess makes {self.preprocess.size}; "
                f"give the preprocess it was trained with"
            )
        activation = "softmax" if self._bias is None else "sigmoid"
        if activation != self.preprocess.activation:
            raise UserError(
                f"the model {'has no' if self._bias is None else 'has a'} bias, so its activation is "
                f"{activation}, not {self.preprocess.activation}; give the preprocess it was trained with"
            )
        self.model.to(self.device).eval()

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> "Scorer":
        """The scorer of a shipped model or a checkpoint folder, or one of another library.

        Args:
            name: `emoji`, a checkpoint folder, `hf:FOLDER` or `hf:NAME` (a CLIP or SigLIP of transformers),
                `open_clip:MODEL:PRETRAINED`. Only a name on a hub reaches for the network.
            device: where to compute.

        Raises:
            UserError: there is no such scorer, or the library for it is not installed.
        """
        library, _, rest = str(name).partition(":")
        if library in ADAPTERS:
            return cls(*ADAPTERS[library](rest), device)
        folder = find_checkpoint(name)
        part = read_part(folder, "scorer")
        text_tokenizer = TextTokenizer(folder / TEXT_TOKENIZER_FILE)
        check_trained_with(part, "text_tokenizer", text_tokenizer.identity)
        config = from_dict(ScorerConfig, part.config, str(part.path))
        ids = {"pad_id": text_tokenizer.pad_id, "eos_id": text_tokenizer.eos_id}
        clip = load_weights(build_clip(config, text_tokenizer.vocab_size, **ids), part, device)
        prepare = Preprocess(config.image_size, activation="sigmoid" if config.sigmoid else "softmax")
        return cls(clip, text_tokenizer, prepare, config.text_length, device)

    @property
    def image_size(self) -> int:
        """Side in pixels at which the model looks at pictures."""
        return self.preprocess.size

    @property
    def scale(self) -> float:
        """What cosines are multiplied with to become log-odds: the inverse of the learned temperature."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def _bias(self) -> float | None:
        """What is then added to become log-odds, for models that are read by sigmoid."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias.detach())

    def embed_images(self, images: Images) -> Tensor:
        """Embed pictures.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: a tensor is not (N, 3, H, W) floating point, or something else than pictures came.
        """
        _check_images(images)

        def encode(chunk: slice) -> Tensor:
            part, prepare = images[chunk], self.preprocess
            pixels = prepare.from_pixels(part) if isinstance(part, Tensor) else prepare.from_images(part)
            return self.model.encode_image(pixels.to(self.device))

        return self._embed(len(images), encode)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """As `embed_images`, but with gradients back to the pixels, in one pass, and left on `device`.

        Args:
            pixels: (N, 3, H, W) in [-1, 1], on any device.

        Raises:
            UserError: a tensor of another kind came.
        """
        _check_images(pixels)
        return F.normalize(self.model.encode_image(self.preprocess.from_pixels(pixels.to(self.device))).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Returns:
            (N, D), L2-normalised.

        Raises:
            UserError: one string came instead of several.
        """
        _check_texts(texts)

        def encode(chunk: slice) -> Tensor:
            text_ids = self.text_tokenizer.encode_batch(list(texts[chunk]), self.text_length, add_eos=True)
            return self.model.encode_text(text_ids.to(self.device))

        return self._embed(len(texts), encode)

    def embed_labels(self, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Embed labels in the words of some templates.

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
            raise UserError("0 labels came; give at least one, better two or more to choose from")
        if not templates or not all("{}" in template for template in templates):
            raise UserError(f"the templates {list(templates)} came; give at least one, each with {{}} for the label")
        embeds = [self.embed_texts([template.replace("{}", label) for label in labels]) for template in templates]
        return embeds[0] if len(embeds) == 1 else F.normalize(torch.stack(embeds).mean(dim=0), dim=-1)

    def cosines(self, images: Images, text: str) -> Tensor:
        """Cosine (N,) in [-1, 1] between each picture and the text.

        Only differences between pictures mean something: good fits of a CLIP model lie far below 1.
        """
        return self.embed_images(images) @ self.embed_texts([text])[0]

    def score(self, images: Images, text: str) -> Tensor:
        """How well each picture fits the text, (N,).

        Cosines, or by models read by sigmoid (SigLIP) the probability that picture and text belong together.
        """
        return self._read(self.cosines(images, text))

    def rank(self, images: Images, text: str) -> tuple[Tensor, Tensor]:
        """Order pictures by how well they fit the text.

        Returns:
            order: (N,) int64, numbers of the pictures, best first; equal cosines keep the given order.
            scores: (N,) what `score` gives, in that order, so `scores[0]` belongs to `images[order[0]]`.
        """
        # Not by probabilities, which round to 1 where cosines still differ.
        cosines, order = torch.sort(self.cosines(images, text), descending=True, stable=True)
        return order, self._read(cosines)

    def classify(self, images: Images, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Probability of each label for each picture; see `probabilities`, and `embed_labels` for `templates`.

        Returns:
            (N, number of labels).

        Raises:
            UserError: there is no label, or a template has no `{}`.
        """
        label_embed = self.embed_labels(labels, templates)
        return self.probabilities(self.embed_images(images), label_embed)

    def probabilities(self, image_embed: Tensor, label_embed: Tensor) -> Tensor:
        """Probability of each label, given that exactly one fits; of models read by sigmoid, of each on its own.

        Args:
            image_embed: (N, D), from `embed_images`.
            label_embed: (number of labels, D), from `embed_labels` or `embed_texts`.

        Returns:
            (N, number of labels); rows sum to 1 unless the model is read by sigmoid.
        """
        cosines = image_embed @ label_embed.T
        return self._read(cosines) if self._bias is not None else (self.scale * cosines).softmax(dim=-1)

    def _read(self, cosines: Tensor) -> Tensor:
        """Probabilities where the model gives them, else the cosines themselves."""
        return cosines if self._bias is None else (self.scale * cosines + self._bias).sigmoid()

    def _embed(self, count: int, encode: Callable[[slice], Tensor]) -> Tensor:
        # Made outside inference mode, so that callers may change the result and use it in training.
        embed = torch.empty(count, self.model.embed_dim)
        with torch.inference_mode():
            for start in range(0, count, self.chunk_size):
                chunk = slice(start, min(start + self.chunk_size, count))
                embed[chunk] = F.normalize(encode(chunk).float(), dim=-1).cpu()
        return embed


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UserError(f"the single text {texts!r} came; give a list of texts, such as [{texts!r}]")


def _check_images(images: Images) -> None:
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"a tensor of shape {tuple(images.shape)} and type {images.dtype} came; give pixels "
                f"(N, 3, H, W), floating point in [-1, 1]"
            )
    elif isinstance(images, Image.Image) or not all(isinstance(image, Image.Image) for image in images):
        raise UserError(f"{type(images).__name__} came; give a list of PIL pictures or pixels (N, 3, H, W)")
