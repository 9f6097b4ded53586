"""Adapters to models of other libraries: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023) of transformers, and
the models of open_clip (Ilharco et al. 2021).

Both libraries are optional and large, so each is imported when one of its models is loaded. Only models named by their
place on a hub, or by an open_clip tag, use the network; a folder or file is never looked up there.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.text.caption_tokenizer import MAX_QUOTED_CHARACTERS
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.text import without_surrogates

MAX_VOCAB_DIFFERENCE = 0.1
"""By how much the sizes of a tokenizer and its model may differ, as a fraction: some models pad their embeddings."""


class ForeignClipModel(nn.Module):
    """A model of another library with the interface of `scorer.ClipModel`.

    Args:
        model: has a `logit_scale`, and a `logit_bias` if its scores are sigmoids.
        encode_image: its function from normalised pixels (B, 3, S, S) to embeddings (B, D).
        encode_text: its function from text ids (B, L) to embeddings (B, D).
        image_size: S, in pixels.
        embed_dim: D.
    """

    def __init__(
        self,
        model: Any,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor], Tensor],
        image_size: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.encode_image = encode_image
        self.encode_text = encode_text
        self.image_size = image_size
        self.embed_dim = embed_dim

    @property
    def logit_scale(self) -> Tensor:
        """Natural logarithm of the factor of cosines."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """Added to the scaled cosines of a sigmoid model; None for a softmax model."""
        return getattr(self.model, "logit_bias", None)


class ForeignTokenizer:
    """A text tokenizer of another library with the interface of `scorer.TextEncoder`.

    Args:
        encode: function from texts and a length to text ids (B, length), cut or padded on the right, with end-of-text
            ids.
    """

    def __init__(self, encode: Callable[[list[str], int], Tensor]) -> None:
        self._encode = encode
        self._lock = threading.Lock()

    def encode_batch(self, texts: Sequence[str], length: int, add_eos: bool = True) -> Tensor:
        """Texts -> text ids (B, length) int64; they always end with an end-of-text id. Warns of texts that are cut."""
        texts = [without_surrogates(text) for text in texts]
        with self._lock:  # the tokenizers library keeps the length in the tokenizer, and fails if two threads set it
            text_ids = self._encode(texts, length)
            longer_ids = self._encode(texts, length + 1)
        # A text that fits has the same ids and more padding; of a text that is cut, the last id is end-of-text.
        cut = (text_ids != longer_ids[:, :length]).any(1).nonzero()[:, 0].tolist()
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts have more than the scorer's {length} text ids and are cut, such as "
                f"{texts[cut[0]][:MAX_QUOTED_CHARACTERS]!r}",
                stacklevel=2,
            )
        return text_ids


class LoadedScorer(NamedTuple):
    """The first fields of a `Scorer`, in its order."""

    model: ForeignClipModel
    text_tokenizer: ForeignTokenizer
    preprocess: Preprocess
    text_length: int
    """Text ids per caption, end-of-text included."""


def load_transformers(name: str) -> LoadedScorer:
    """Load a CLIP or SigLIP model of transformers (extra `clip`).

    Args:
        name: folder with the model, its tokenizer and its image processor, or a model's name on the hub.

    Raises:
        UserError: transformers is not installed, there is no such model, it is of another kind or lacks weights, or its
            image processor does something unsupported, or its tokenizer is another model's.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    except ImportError as error:
        raise need_extra("transformers", "clip", "protobuf") from error
    path = Path(name).expanduser()
    if not name or (not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")))):
        raise UserError(
            f"expected a folder or a name on the hub after hf:, got {name!r}, which is no such folder; check the path"
        )
    source, options = (str(path), {"local_files_only": True}) if path.is_dir() else (name, {})
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type not in ("clip", "siglip"):
            raise UserError(
                f"expected a model of type clip or siglip, got hf:{name} of type {config.model_type}; choose another"
            )
        model, loading = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        preprocess = _preprocess_of_processor(AutoImageProcessor.from_pretrained(source, **options), config.model_type)
    except UserError:
        raise
    except Exception as error:  # these libraries raise almost anything on files that are missing or damaged
        raise _unloadable(f"hf:{name}", error) from error
    if missing := loading["missing_keys"]:
        raise UserError(f"hf:{name} lacks {len(missing)} of its weights, such as {min(missing)}; copy it again")
    vocab = config.text_config.vocab_size
    if abs(len(tokenizer) - vocab) > MAX_VOCAB_DIFFERENCE * vocab:
        raise UserError(
            f"expected hf:{name} to have a tokenizer of about {vocab} text ids, as its model has, got one of "
            f"{len(tokenizer)}; copy the model's tokenizer files into the folder"
        )

    def encode(texts: list[str], length: int) -> Tensor:
        settings = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return tokenizer(texts, **settings)["input_ids"]

    clip = ForeignClipModel(
        model,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        lambda text_ids: model.get_text_features(input_ids=text_ids).pooler_output,
        config.vision_config.image_size,
        config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size,
    )
    return LoadedScorer(clip, ForeignTokenizer(encode), preprocess, config.text_config.max_position_embeddings)


def load_open_clip(name: str) -> LoadedScorer:
    """Load a model of open_clip (extra `open-clip`).

    Args:
        name: `MODEL:PRETRAINED`, where PRETRAINED is a tag whose weights open_clip downloads, or a file of weights; or
            `local-dir:FOLDER` or `hf-hub:NAME`, which name both.

    Raises:
        UserError: open_clip is not installed, the name is incomplete, there is no such model, or its image transform
            does something unsupported.
    """
    try:
        import open_clip
    except ImportError as error:
        raise need_extra("open_clip_torch", "open-clip") from error
    model_name, _, pretrained = name.partition(":")
    if not (model_name and pretrained):
        raise UserError(
            f"expected open_clip:MODEL:PRETRAINED, got open_clip:{name}; write for example open_clip:ViT-B-32:openai"
        )
    weights: str | None = pretrained
    if model_name in ("local-dir", "hf-hub"):
        model_name, weights = name, None
    # Most names of models build GELU, and weights such as those of OpenAI were trained with QuickGELU.
    quick_gelu = bool(open_clip.get_pretrained_cfg(model_name, pretrained).get("quick_gelu"))
    options = {"precision": "fp32", "require_pretrained": True, "force_quick_gelu": quick_gelu}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model = open_clip.create_model(model_name, weights, **options)
        tokenizer = open_clip.get_tokenizer(model_name)
        sigmoid = getattr(model, "logit_bias", None) is not None
        activation = "sigmoid" if sigmoid else "softmax"
        preprocess = _preprocess_of_open_clip(open_clip.get_model_preprocess_cfg(model), activation)
        with torch.inference_mode():
            embed_dim = model.eval().encode_text(tokenizer(["a"])).shape[-1]
    except UserError:
        raise
    except Exception as error:
        raise _unloadable(f"open_clip:{name}", error) from error
    size = _square_side(model.visual.image_size)
    clip = ForeignClipModel(model, model.encode_image, model.encode_text, size, embed_dim)
    text_tokenizer = ForeignTokenizer(lambda texts, length: tokenizer(texts, context_length=length))
    return LoadedScorer(clip, text_tokenizer, preprocess, tokenizer.context_length)


def _preprocess_of_processor(processor: Any, model_type: str) -> Preprocess:
    """The settings that do what an image processor of transformers does."""
    if not (processor.do_resize and processor.do_rescale and abs(processor.rescale_factor * 255 - 1) < 1e-6):
        raise UserError(
            "expected an image processor that resizes and divides values by 255, got one that does not; "
            "choose another model"
        )
    size = processor.size
    crop = processor.crop_size if processor.do_center_crop else None
    if crop is not None and size.shortest_edge:
        side = _square_side((crop.height, crop.width, size.shortest_edge))
        resize = "crop"
    elif crop is None and size.height:
        side = _square_side((size.height, size.width))
        resize = "squash"
    else:
        raise UserError(
            f"expected an image processor that crops the shortest edge to a square, or resizes to a square, "
            f"got size {size} and crop {crop}; choose another model"
        )
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0,) * 3, (1,) * 3)
    return Preprocess(
        side,
        tuple(mean),
        tuple(std),
        Image.Resampling(processor.resample).name.lower(),
        resize,
        "sigmoid" if model_type == "siglip" else "softmax",
    )


def _preprocess_of_open_clip(settings: dict[str, Any], activation: str) -> Preprocess:
    """The settings that do what open_clip's transform does, except that it crops an odd pixel at the other side."""
    modes = {"shortest": "crop", "squash": "squash"}
    if settings["resize_mode"] not in modes:
        raise UserError(
            f"expected a model whose pictures are resized by {' or '.join(modes)}, got {settings['resize_mode']}; "
            f"choose another model"
        )
    return Preprocess(
        _square_side(settings["size"]),
        tuple(settings["mean"]),
        tuple(settings["std"]),
        settings["interpolation"],
        modes[settings["resize_mode"]],
        activation,
    )


def _square_side(size: int | Sequence[int]) -> int:
    """The side in pixels of sizes that must all be equal."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UserError(
            f"expected a model of square pictures, got sides of {sorted(sides)} pixels; choose another model"
        )
    return sides.pop()


def _unloadable(name: str, error: Exception) -> UserError:
    """One line from a library's error of many lines."""
    reason = " ".join(str(error).split())
    return UserError(f"cannot load {name} ({reason[:300]}); check the name, or copy all of its files again")


ADAPTERS: dict[str, Callable[[str], LoadedScorer]] = {"hf": load_transformers, "open_clip": load_open_clip}
"""Library, the part of a scorer's name before the first colon -> function that loads the rest of the name."""
