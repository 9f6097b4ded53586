"""How DALLE-pytorch stores the transformer of a DALLE: names and shapes of its tensors, in files of all versions."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.result import affine
from dalle_mini_impl.util.errors import UserError

Shapes = dict[str, tuple[int, ...]]

DEFAULTS = {"num_text_tokens": 10000, "text_seq_len": 256, "heads": 8, "dim_head": 64}
"""What the package takes where `hparams` do not say."""
NESTS = {True: ("fn.fn.fn.fn.fn.", "fn.fn.fn.fn."), False: ("fn.fn.fn.", "fn.fn.")}
"""What precedes the names of attention's and the feed-forward layer's tensors in 1.6.6, with shifted channels and
without: an `fn.` for each module around them. Earlier versions have other numbers of them."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What decides names and shapes."""

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
    """Whether positions turn channels; else they are learned."""
    reversible: bool
    sandwich: bool
    tied: bool = False
    """Whether embeddings and output head are the same matrix."""
    nests: tuple[str, str]
    """As `NESTS` has them."""
    axial: str = "image_pos_emb.weights."
    """What the embeddings of rows and columns are called, before their number."""

    @property
    def shift(self) -> bool:
        """Whether blocks look at channels of neighbours."""
        return self.nests[1].count("fn.") > 2

    @property
    def turned(self) -> int:
        """Pairs of a head's channels that positions turn: a third each by text position, row and column."""
        return 3 * (self.head_dim // 3 // 2)

    def halves(self, number: int) -> tuple[str, str]:
        """What the names in one layer's attention and feed-forward layer begin with."""
        start = f"transformer.layers.{'blocks' if self.reversible else 'layers'}.{number}."
        return (f"{start}f.net.", f"{start}g.net.") if self.reversible else (f"{start}0.", f"{start}1.")

    def shapes(self) -> Shapes:
        """Names and shapes of all tensors but those of the image tokenizer."""
        C, text = self.n_embd, self.text_vocab + self.text_length
        V = text + self.image_vocab
        shapes = affine("to_logits.0", C) | affine("to_logits.1", V, C)
        if self.tied:
            shapes |= affine("text_emb.linear", V, C) | affine("image_emb.linear", V, C)
        else:
            shapes |= {"text_emb.weight": (text, C), "image_emb.weight": (self.image_vocab, C)}
        if self.rotary:
            shapes["transformer.pos_emb"] = (1, 1 + self.text_length + self.side**2, 2 * self.turned)
        else:
            shapes["text_pos_emb.weight"] = (1 + self.text_length, C)
            shapes |= {f"{self.axial}0": (1, self.side, 1, C), f"{self.axial}1": (1, 1, self.side, C)}
        for number in range(self.n_layer):
            shapes |= self._layer(number)
        return shapes

    def _layer(self, number: int) -> Shapes:
        C, inner = self.n_embd, self.n_head * self.head_dim
        shapes: Shapes = {}
        for half in self.halves(number):
            shapes |= {f"{half}scale": (1, 1, C), **affine(f"{half}fn.norm", C)}
            shapes |= affine(f"{half}fn.norm_out", C) if self.sandwich else {}
        attention, feed = (half + nest for half, nest in zip(self.halves(number), self.nests, strict=True))
        shapes |= {f"{attention}to_qkv.weight": (3 * inner, C), **affine(f"{attention}to_out.0", C, inner)}
        return shapes | affine(f"{feed}net.0", 8 * C, C) | affine(f"{feed}net.3", C, 4 * C)


def layout_of(hparams: Mapping[str, Any], weights: Weights, image_vocab: int) -> Layout:
    """The layout of a file, from its settings and the names it has.

    Args:
        hparams: what the package was given to make the model.
        weights: all tensors but the image tokenizer's.
        image_vocab: ids of the image tokenizer.

    Raises:
        UserError: a number or a tensor that tells it is missing.
    """
    numbers = {name: _number(hparams, name, weights.source) for name in ("dim", "depth", *DEFAULTS)}
    rotary = "transformer.pos_emb" in weights.tensors
    axial = "image_pos_emb.weights_" if "image_pos_emb.weights_0" in weights.tensors else Layout.axial
    if rotary:
        image = weights.size("transformer.pos_emb", 1) - 1 - numbers["text_seq_len"]
        side = math.isqrt(max(0, image))
    else:
        side = weights.size(f"{axial}0", 1)
    return Layout(
        text_vocab=numbers["num_text_tokens"],
        text_length=numbers["text_seq_len"],
        side=side,
        image_vocab=image_vocab,
        n_embd=numbers["dim"],
        n_layer=numbers["depth"],
        n_head=numbers["heads"],
        head_dim=numbers["dim_head"],
        rotary=rotary,
        axial=axial,
        reversible=any(name.startswith("transformer.layers.blocks.") for name in weights.tensors),
        sandwich=any(".fn.norm_out." in name for name in weights.tensors),
        tied="text_emb.linear.weight" in weights.tensors,
        nests=(_nest(weights, "to_qkv.weight"), _nest(weights, "net.0.weight")),
    )


def _number(hparams: Mapping[str, Any], name: str, source: str) -> int:
    value = hparams.get(name, DEFAULTS.get(name))
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"{source}: {name} in hparams is {value!r}, expected a whole number of 1 or more; "
            f"give the file as DALLE-pytorch saved it"
        )
    return value


def _nest(weights: Weights, last: str) -> str:
    """The `fn.` before the tensors whose names end so."""
    pattern = re.compile(rf"transformer\.layers\..*?((?:fn\.)+){re.escape(last)}")
    for name in weights.tensors:
        if found := pattern.fullmatch(name):
            return found[1]
    raise UserError(f"{weights.source} has no transformer.layers.….{last}; it is incomplete or of another kind")
