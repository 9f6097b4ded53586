"""Scorers of other libraries: CLIP and SigLIP of transformers, and the models of open_clip.

Both libraries are imported when one of their models is asked for. Only a model named by its place on a hub
reaches for the network; files are never looked for there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.util.errors import UserError, need_extra


class ForeignClipModel(nn.Module):
    """A model of another library, with the names a `Scorer` uses.

    Args:
        model: holds `logit_scale`, and `logit_bias` if it is read by sigmoid.
        encode_image: its method for normalised pixels (B, 3, S, S) -> (B, D).
        encode_text: its method for text ids (B, L) -> (B, D).
        image_size: S.
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
        self.model, self.image_size, self.embed_dim = model, image_size, embed_dim
        self.encode_image, self.encode_text = encode_image, encode_text

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of what cosines are multiplied with."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """What is then added, by models that are read by sigmoid."""
        return getattr(self.model, "logit_bias", None)


class ForeignTokenizer:
    """A text tokenizer of another library, which ends each text by itself.

    Args:
        encode: texts and a length -> text ids (B, length), cut or padded.
    """

    def __init__(self, encode: Callable[[list[str], int], Tensor]) -> None:
        self._encode = encode

    def encode_batch(self, texts: Sequence[str], length: int, add_eos: bool = True) -> Tensor:
        """Texts -> ids (B, length) int64."""
        # A shell passes bytes that are no UTF-8 on as lone surrogates, which these libraries refuse.
        return self._encode([text.encode("utf-8", "replace").decode() for text in texts], length)


class LoadedScorer(NamedTuple):
    """What a scorer is made of."""

    model: ForeignClipModel
    text_tokenizer: ForeignTokenizer
    preprocess: Preprocess
    text_length: int
    """Text ids per caption, end-of-text included."""


def load_transformers(name: str) -> LoadedScorer:
    """A CLIP or SigLIP of transformers (extra `clip`).

    Args:
        name: a folder with the model, its tokenizer and its image processor, or else a model's name on the hub.

    Raises:
        UserError: transformers is not installed, or there is no such model, or it is of another kind, or lacks
            weights, or its pictures are prepared in a way that is not supported.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    except ImportError as error:
        raise need_extra("transformers", "clip", "protobuf") from error
    path = Path(name).expanduser()
    if not name or (not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")))):
        raise UserError(f"hf:{name} came, but there is no such folder; give one, or a name on the hub")
    source, options = (str(path), {"local_files_only": True}) if path.is_dir() else (name, {})
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type not in ("clip", "siglip"):
            raise UserError(f"hf:{name} is a model of type {config.model_type}; expected clip or siglip")
        model, found = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        prepare = _of_processor(AutoImageProcessor.from_pretrained(source, **options), config.model_type)
    except UserError:
        raise
    except Exception as error:  # these libraries raise almost anything on files that are missing or damaged
        raise _unloadable(f"hf:{name}", error) from error
    if found["missing_keys"]:
        raise UserError(
            f"hf:{name} lacks {len(found['missing_keys'])} of its weights, such as "
            f"{min(found['missing_keys'])}; copy it anew"
        )

    def encode(texts: list[str], length: int) -> Tensor:
        settings = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return tokenizer(texts, **settings)["input_ids"]

    towers = ForeignClipModel(
        model,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        lambda text_ids: model.get_text_features(input_ids=text_ids).pooler_output,
        config.vision_config.image_size,
        config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size,
    )
    length = config.text_config.max_position_embeddings
    return LoadedScorer(towers, ForeignTokenizer(encode), prepare, length)


def load_open_clip(name: str) -> LoadedScorer:
    """A model of open_clip (extra `open-clip`).

    Args:
        name: `MODEL:PRETRAINED`, where the latter is a tag, whose weights open_clip downloads, or a file of
            weights; or `local-dir:FOLDER` or `hf-hub:NAME`, which name both.

    Raises:
        UserError: open_clip is not installed, the name is incomplete, or there is no such model, or its pictures
            are prepared in a way that is not supported.
    """
    try:
        import open_clip
    except ImportError as error:
        raise need_extra("open_clip_torch", "open-clip") from error
    model_name, _, pretrained = name.partition(":")
    if not (model_name and pretrained):
        raise UserError(f"open_clip:{name} came; expected open_clip:MODEL:PRETRAINED, as in open_clip:ViT-B-32:openai")
    weights: str | None = pretrained
    if model_name in ("local-dir", "hf-hub"):
        model_name, weights = name, None
    try:
        model = open_clip.create_model(model_name, weights, precision="fp32", require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model_name)
        sigmoid = getattr(model, "logit_bias", None) is not None
        prepare = _of_open_clip(open_clip.get_model_preprocess_cfg(model), "sigmoid" if sigmoid else "softmax")
        with torch.inference_mode():
            embed_dim = model.eval().encode_text(tokenizer(["a"])).shape[-1]
    except UserError:
        raise
    except Exception as error:
        raise _unloadable(f"open_clip:{name}", error) from error
    size = _side(model.visual.image_size)
    towers = ForeignClipModel(model, model.encode_image, model.encode_text, size, embed_dim)
    text_tokenizer = ForeignTokenizer(lambda texts, length: tokenizer(texts, context_length=length))
    return LoadedScorer(towers, text_tokenizer, prepare, tokenizer.context_length)


def _of_processor(processor: Any, model_type: str) -> Preprocess:
    """What an image processor of transformers does."""
    if not (processor.do_resize and processor.do_rescale and abs(processor.rescale_factor * 255 - 1) < 1e-6):
        raise UserError("its image processor does not resize, or does not divide values by 255; not supported")
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    if crop is not None and size.shortest_edge:
        side, resize = _side((crop.height, crop.width, size.shortest_edge)), "crop"
    elif crop is None and size.height:
        side, resize = _side((size.height, size.width)), "squash"
    else:
        raise UserError(f"its image processor makes {size}, then cuts {crop}; not supported")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0,) * 3, (1,) * 3)
    return Preprocess(
        side,
        tuple(mean),
        tuple(std),
        Image.Resampling(processor.resample).name.lower(),
        resize,
        "sigmoid" if model_type == "siglip" else "softmax",
    )


def _of_open_clip(settings: dict[str, Any], activation: str) -> Preprocess:
    """What open_clip's own transform does, but for an odd pixel, which it cuts off at the other side."""
    modes = {"shortest": "crop", "squash": "squash"}
    if settings["resize_mode"] not in modes:
        raise UserError(f"its pictures are resized by {settings['resize_mode']}; expected {' or '.join(modes)}")
    return Preprocess(
        _side(settings["size"]),
        tuple(settings["mean"]),
        tuple(settings["std"]),
        settings["interpolation"],
        modes[settings["resize_mode"]],
        activation,
    )


def _side(size: int | Sequence[int]) -> int:
    """The one side of a square."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UserError(f"its pictures have sides of {sorted(sides)} pixels; expected squares")
    return sides.pop()


def _unloadable(name: str, error: Exception) -> UserError:
    """One line about what a library says in many."""
    reason = " ".join(str(error).split())
    return UserError(f"cannot load {name} ({reason[:300]}); give a CLIP-like model that is complete")


ADAPTERS: dict[str, Callable[[str], LoadedScorer]] = {"hf": load_transformers, "open_clip": load_open_clip}
"""What loads a scorer, by the part of its name before the first colon."""
