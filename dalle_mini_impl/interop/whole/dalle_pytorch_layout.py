"""How DALLE-pytorch stores the transformer of a DALLE: names and shapes of its tensors, in files of all versions.

Every attention and feed-forward layer of version 1.6.6 lies inside wrapper modules (LayerScale, norms, token shift,
cache). Each wrapper adds an `fn.` to the names, so that versions differ in how many there are. Earlier versions also
have `image_pos_emb.weights_0` and `_1`, the position embeddings of rows and columns, where 1.6.6 has
`image_pos_emb.weights.0` and `.1`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dalle_mini_impl.interop.check_tensors import weight_and_bias
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.util.errors import UserError

Shapes = dict[str, tuple[int, ...]]

DEFAULT_HPARAMS = {"num_text_tokens": 10000, "text_seq_len": 256, "heads": 8, "dim_head": 64}
"""The defaults of the class `DALLE`, used where `hparams` in the file do not set them."""
LARGEST_SETTING = 2**31
WRAPPERS = {True: ("fn.fn.fn.fn.fn.", "fn.fn.fn.fn."), False: ("fn.fn.fn.", "fn.fn.")}
"""Prefixes of the wrappers of attention and of the feed-forward layer in 1.6.6, with token shift and without."""


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """What determines names and shapes."""

    text_vocab: int
    text_length: int
    side: int
    """The token grid is side × side."""
    image_vocab: int
    n_embd: int
    n_layer: int
    n_head: int
    head_dim: int
    rotary: bool
    """Rotary position embedding; otherwise positions are learned."""
    reversible: bool
    sandwich: bool
    tied: bool = False
    """Whether the embeddings and the output head are the same matrix."""
    wrappers: tuple[str, str]
    """Prefixes of attention and of the feed-forward layer, as in `WRAPPERS`."""
    axial_prefix: str = "image_pos_emb.weights."
    """What precedes 0 and 1 in the names of the position embeddings of rows and columns."""

    @property
    def token_shift(self) -> bool:
        """Whether blocks shift channels between neighbouring positions: its wrapper adds one `fn.`."""
        return self.wrappers[1].count("fn.") > 2

    @property
    def rotated_pairs(self) -> int:
        """Pairs of a head's channels that are rotated: a third each by text position, row and column."""
        return 3 * (self.head_dim // 3 // 2)

    def sublayer_prefixes(self, layer: int) -> tuple[str, str]:
        """What the names in the attention half and in the feed-forward half of one layer begin with."""
        if self.reversible:
            start = f"transformer.layers.blocks.{layer}."
            return f"{start}f.net.", f"{start}g.net."
        start = f"transformer.layers.layers.{layer}."
        return f"{start}0.", f"{start}1."

    def shapes(self) -> Shapes:
        """Names and shapes of all tensors except those of the image tokenizer."""
        C = self.n_embd
        text_ids = self.text_vocab + self.text_length
        all_ids = text_ids + self.image_vocab
        shapes = weight_and_bias("to_logits.0", C) | weight_and_bias("to_logits.1", all_ids, C)
        if self.tied:
            shapes |= weight_and_bias("text_emb.linear", all_ids, C) | weight_and_bias("image_emb.linear", all_ids, C)
        else:
            shapes |= {"text_emb.weight": (text_ids, C), "image_emb.weight": (self.image_vocab, C)}
        if self.rotary:
            shapes["transformer.pos_emb"] = (1, 1 + self.text_length + self.side**2, 2 * self.rotated_pairs)
        else:
            shapes["text_pos_emb.weight"] = (1 + self.text_length, C)
            shapes[f"{self.axial_prefix}0"] = (1, self.side, 1, C)
            shapes[f"{self.axial_prefix}1"] = (1, 1, self.side, C)
        for layer in range(self.n_layer):
            shapes |= self._layer_shapes(layer)
        return shapes

    def _layer_shapes(self, layer: int) -> Shapes:
        C = self.n_embd
        inner = self.n_head * self.head_dim
        shapes: Shapes = {}
        for prefix in self.sublayer_prefixes(layer):
            shapes[f"{prefix}scale"] = (1, 1, C)
            shapes |= weight_and_bias(f"{prefix}fn.norm", C)
            if self.sandwich:
                shapes |= weight_and_bias(f"{prefix}fn.norm_out", C)
        attention, feed_forward = (
            prefix + wrapper for prefix, wrapper in zip(self.sublayer_prefixes(layer), self.wrappers, strict=True)
        )
        shapes[f"{attention}to_qkv.weight"] = (3 * inner, C)
        shapes |= weight_and_bias(f"{attention}to_out.0", C, inner)
        return (
            shapes
            | weight_and_bias(f"{feed_forward}net.0", 8 * C, C)
            | weight_and_bias(f"{feed_forward}net.3", C, 4 * C)
        )


def layout_from_file(hparams: Mapping[str, Any], weights: Weights, image_vocab: int) -> TensorLayout:
    """The layout of a file, from its settings and from names and shapes of its tensors.

    Args:
        hparams: the arguments of the class `DALLE`, as in the file.
        weights: all tensors except the image tokenizer's.
        image_vocab: number of ids of the image tokenizer.

    Raises:
        UserError: a setting or a tensor that determines the layout is missing.
    """
    settings = {name: _setting(hparams, name, weights.source) for name in ("dim", "depth", *DEFAULT_HPARAMS)}
    if settings["depth"] > len(weights.tensors):
        raise UserError(
            f"expected depth in hparams to be the number of layers, got {settings['depth']} for "
            f"{len(weights.tensors)} tensors in {weights.source}; give the file that DALLE-pytorch saved"
        )
    axial_prefix = TensorLayout.axial_prefix
    if "image_pos_emb.weights_0" in weights.tensors:
        axial_prefix = "image_pos_emb.weights_"
    rotary = "transformer.pos_emb" in weights.tensors
    if rotary:
        image_length = weights.size("transformer.pos_emb", 1) - 1 - settings["text_seq_len"]
        side = math.isqrt(max(0, image_length))
    else:
        side = weights.size(f"{axial_prefix}0", 1)
    return TensorLayout(
        text_vocab=settings["num_text_tokens"],
        text_length=settings["text_seq_len"],
        side=side,
        image_vocab=image_vocab,
        n_embd=settings["dim"],
        n_layer=settings["depth"],
        n_head=settings["heads"],
        head_dim=settings["dim_head"],
        rotary=rotary,
        axial_prefix=axial_prefix,
        reversible=any(name.startswith("transformer.layers.blocks.") for name in weights.tensors),
        sandwich=any(".fn.norm_out." in name for name in weights.tensors),
        tied="text_emb.linear.weight" in weights.tensors,
        wrappers=(_find_wrapper(weights, "to_qkv.weight"), _find_wrapper(weights, "net.0.weight")),
    )


def _setting(hparams: Mapping[str, Any], name: str, source: str) -> int:
    value = hparams.get(name, DEFAULT_HPARAMS.get(name))
    if type(value) is not int or not 1 <= value <= LARGEST_SETTING:
        raise UserError(
            f"expected {name} in hparams to be a whole number of 1 or more, got {value!r:.100} in {source}; "
            f"give the file that DALLE-pytorch saved"
        )
    return value


def _find_wrapper(weights: Weights, ending: str) -> str:
    """The `fn.` before `ending` in the names that end with it."""
    pattern = re.compile(rf"transformer\.layers\..*?((?:fn\.)+){re.escape(ending)}")
    for name in weights.tensors:
        if match := pattern.fullmatch(name):
            return match[1]
    raise UserError(
        f"expected a tensor transformer.layers.….{ending}, got none in {weights.source}; "
        f"download it again or import it as another format"
    )
