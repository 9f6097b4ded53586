"""A whole DALLE of DALLE-pytorch: names, shapes and options in files of several versions, and a slow reference for it.

The reference computes one sequence, one head and one position at a time.
"""

import cmath
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.foreign_dalle_pytorch_vae import discrete_vae_shapes
from helpers.foreign_tensors import Shapes, Tensors, layer_norm, random_tensors, weight_and_bias

TEXT_VOCAB = 41
TEXT_LENGTH = 5
SIDE = 4
N_IDS = 61
PREFIX_LENGTH = 1 + TEXT_LENGTH
TEXT_IDS = TEXT_VOCAB + TEXT_LENGTH
"""With one padding id for each text position."""
WIDTH = 20
HEADS = 3
HEAD_DIM = 14
"""Not WIDTH / HEADS, and 12 of the 14 channels are rotated."""


@dataclass(frozen=True)
class DalleOptions:
    """Options of a DALLE, and how its version names tensors."""

    attn_types: tuple[str, ...] = ("full", "axial_row")
    """One for each layer."""
    wrappers: tuple[int, int] = (5, 4)
    """How many `fn.` precede the names in attention and in the feed-forward layer."""
    rotary: bool = True
    sandwich: bool = False
    reversible: bool = False
    stable: bool = False
    tied: bool = False
    axial_prefix: str = "image_pos_emb.weights."
    version: str | None = "1.6.6"
    """None for files from before it was recorded."""
    early_rotary_table: bool = False
    """Whether the rotary table lacks the last position and has one axis more, as before 1.1.2."""

    @property
    def centred(self) -> bool:
        """Whether the square of `conv_like` lies around the position."""
        return self.version is None or self.version < "1.5"

    @property
    def token_shift(self) -> bool:
        return self.wrappers in ((5, 4), (3, 3))

    def sublayer_prefix(self, layer: int, sublayer: int) -> str:
        """What names begin with in attention (sublayer 0) or in the feed-forward layer (1)."""
        if self.reversible:
            return f"transformer.layers.blocks.{layer}.{'fg'[sublayer]}.net."
        return f"transformer.layers.layers.{layer}.{sublayer}."

    @property
    def hparams(self) -> dict[str, Any]:
        return {
            "num_text_tokens": TEXT_VOCAB,
            "text_seq_len": TEXT_LENGTH,
            "dim": WIDTH,
            "depth": len(self.attn_types),
            "heads": HEADS,
            "dim_head": HEAD_DIM,
            "attn_types": self.attn_types,
            "stable": self.stable,
        }


OPTIONS = {
    "1.6.6": DalleOptions(("full", "axial_row", "axial_col", "conv_like")),
    "1.6.6 without token shift": DalleOptions(wrappers=(3, 2), stable=True, tied=True),
    "before the cache was added": DalleOptions(wrappers=(3, 3), sandwich=True, version=None),
    "1.4.2": DalleOptions(("conv_like", "axial_col"), version="1.4.2"),
    "1.5.0": DalleOptions(("axial_row", "conv_like"), version="1.5.0"),
    "1.1.1": DalleOptions(("conv_like", "full"), wrappers=(3, 3), version=None, early_rotary_table=True),
    "the first version": DalleOptions(
        ("conv_like", "full"), wrappers=(2, 2), rotary=False, axial_prefix="image_pos_emb.weights_", version=None
    ),
    "reversible": DalleOptions(("axial_col", "full"), rotary=False, reversible=True, sandwich=True),
}
PICTURE = [3, 60, 0, 17, 5, 5, 41, 8, 29, 33, 2, 60, 12, 48, 7, 19]
"""Image ids of a picture of SIDE × SIDE."""
VAE = random_tensors(discrete_vae_shapes(2, 0, hidden=11, embed_dim=7, n_ids=N_IDS), gain=1.6)
"""Tensors of a DiscreteVAE."""


def dalle_tensors(options: DalleOptions, seed: int = 0) -> Tensors:
    """Random tensors of all but the image tokenizer, such that each has an effect on the logits."""
    tensors = random_tensors(_shapes(options), seed, gain=1.5)
    for name in tensors:
        if name.endswith("scale") or name == "to_logits.0.weight":
            tensors[name] += 1
    if options.rotary:
        generator = torch.Generator().manual_seed(seed)
        angles = 9 * torch.randn(1, PREFIX_LENGTH + SIDE**2, 6, generator=generator)
        angles = angles.repeat_interleave(2, -1)
        tensors["transformer.pos_emb"] = angles[None, :, :-1] if options.early_rotary_table else angles
    if options.tied:
        for name in ("text_emb.linear", "image_emb.linear"):
            tensors |= {f"{name}.{kind}": tensors[f"to_logits.1.{kind}"] for kind in ("weight", "bias")}
    return tensors


def _shapes(options: DalleOptions) -> Shapes:
    shapes = weight_and_bias("to_logits.0", WIDTH) | weight_and_bias("to_logits.1", TEXT_IDS + N_IDS, WIDTH)
    if not options.tied:
        shapes |= {"text_emb.weight": (TEXT_IDS, WIDTH), "image_emb.weight": (N_IDS, WIDTH)}
    if not options.rotary:
        shapes |= {
            "text_pos_emb.weight": (PREFIX_LENGTH, WIDTH),
            f"{options.axial_prefix}0": (1, SIDE, 1, WIDTH),
            f"{options.axial_prefix}1": (1, 1, SIDE, WIDTH),
        }
    for layer in range(len(options.attn_types)):
        for sublayer, wrappers in enumerate(options.wrappers):
            prefix = options.sublayer_prefix(layer, sublayer)
            inner_prefix = prefix + wrappers * "fn."
            norms = ("norm", "norm_out") if options.sandwich else ("norm",)
            shapes |= {f"{prefix}scale": (1, 1, WIDTH)}
            shapes |= {f"{prefix}fn.{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
            if sublayer == 0:
                shapes |= {
                    f"{inner_prefix}to_qkv.weight": (3 * HEADS * HEAD_DIM, WIDTH),
                    f"{inner_prefix}to_out.0.bias": (WIDTH,),
                    f"{inner_prefix}to_out.0.weight": (WIDTH, HEADS * HEAD_DIM),
                }
            else:
                shapes |= weight_and_bias(f"{inner_prefix}net.0", 8 * WIDTH, WIDTH)
                shapes |= weight_and_bias(f"{inner_prefix}net.3", WIDTH, 4 * WIDTH)
    return shapes


def dalle_file_content(options: DalleOptions = OPTIONS["1.6.6"], vae: Tensors = VAE, **changes: Any) -> dict[str, Any]:
    """The content of a dalle.pt; `changes` replace whole keys."""
    weights = {**{f"vae.{name}": value for name, value in vae.items()}, **dalle_tensors(options)}
    version = {"version": options.version} if options.version else {}
    return {"hparams": options.hparams, "vae_params": None, "weights": weights, **version, **changes}


# --- the reference


def attends(attn_type: str, position: int, other: int, centred: bool = False) -> bool:
    """Whether a position attends to another; `centred` is that of `DalleOptions`."""
    if other > position or position < PREFIX_LENGTH or other < PREFIX_LENGTH:
        return other <= position
    down = (position - PREFIX_LENGTH) // SIDE - (other - PREFIX_LENGTH) // SIDE
    right = (position - PREFIX_LENGTH) % SIDE - (other - PREFIX_LENGTH) % SIDE
    return {
        "full": True,
        "axial_row": down == 0,
        "axial_col": right == 0,
        "conv_like": (abs(down) <= 2 and abs(right) <= 2) if centred else (0 <= down < 5 and 0 <= right < 5),
    }[attn_type]


def _shift_tokens(z: Tensor) -> Tensor:
    """Take a quarter of the channels from the position above and one from that at the left; in text, both before."""
    shifted = z.clone()
    quarter = WIDTH // 4
    for position in range(len(z)):
        cell = position - PREFIX_LENGTH
        sources = ((cell >= SIDE, SIDE), (cell % SIDE > 0, 1))
        if cell < 0:
            sources = ((position > 0, 1), (position > 0, 1))
        for number, (exists, steps_back) in enumerate(sources):
            channels = slice(number * quarter, (number + 1) * quarter)
            shifted[position, channels] = z[position - steps_back, channels] if exists else 0
    return shifted


def _rotate(vector: Tensor, angles: Tensor) -> Tensor:
    """Multiply neighbouring channels, as a complex number, by that of the angle."""
    numbers = vector.tolist()
    for first in range(0, len(angles), 2):
        number = complex(*numbers[first : first + 2]) * cmath.exp(1j * float(angles[first]))
        numbers[first : first + 2] = [number.real, number.imag]
    return torch.tensor(numbers, dtype=torch.float64)


def _attention(tensors: Tensors, prefix: str, z: Tensor, attn_type: str, centred: bool) -> Tensor:
    qkv = (z @ tensors[f"{prefix}to_qkv.weight"].T).view(len(z), 3, HEADS, HEAD_DIM)
    if "transformer.pos_emb" in tensors:
        angles = tensors["transformer.pos_emb"].flatten(0, -2)
        for position in range(min(len(z), len(angles))):  # early files have none for the last, which predicts nothing
            for part in range(3):  # values are rotated, too
                for head in range(HEADS):
                    qkv[position, part, head] = _rotate(qkv[position, part, head], angles[position])
    out = torch.zeros(len(z), HEADS, HEAD_DIM, dtype=torch.float64)
    for position in range(len(z)):
        others = [other for other in range(len(z)) if attends(attn_type, position, other, centred)]
        for head in range(HEADS):
            q, k, v = qkv[position, 0, head], qkv[others, 1, head], qkv[others, 2, head]
            out[position, head] = torch.softmax(k @ q / math.sqrt(HEAD_DIM), 0) @ v
    return out.flatten(1) @ tensors[f"{prefix}to_out.0.weight"].T + tensors[f"{prefix}to_out.0.bias"]


def _feed_forward(tensors: Tensors, prefix: str, z: Tensor) -> Tensor:
    x, gates = (z @ tensors[f"{prefix}net.0.weight"].T + tensors[f"{prefix}net.0.bias"]).chunk(2, -1)
    return (x * F.gelu(gates)) @ tensors[f"{prefix}net.3.weight"].T + tensors[f"{prefix}net.3.bias"]


def dalle_logits(tensors: Tensors, options: DalleOptions, caption: list[int], image_ids: list[int]) -> Tensor:
    """(T, V) logits after BOS, the padded caption and all image ids."""
    tensors = {name: value.double() for name, value in tensors.items()}
    padded = [caption[place] if place < len(caption) else TEXT_VOCAB + place for place in range(TEXT_LENGTH)]
    ids = [0, *padded, *(TEXT_IDS + image_id for image_id in image_ids)]
    if options.tied:
        embeddings = tensors["to_logits.1.weight"]
    else:
        embeddings = torch.cat([tensors["text_emb.weight"], tensors["image_emb.weight"]])
    x = torch.stack([embeddings[i] for i in ids])
    if not options.rotary:
        rows = tensors[f"{options.axial_prefix}0"]
        columns = tensors[f"{options.axial_prefix}1"]
        x[:PREFIX_LENGTH] += tensors["text_pos_emb.weight"]
        x[PREFIX_LENGTH:] += torch.stack(
            [rows[0, cell // SIDE, 0] + columns[0, 0, cell % SIDE] for cell in range(len(image_ids))]
        )

    def sublayer_output(sublayer: int, layer: int, x: Tensor) -> Tensor:
        prefix = options.sublayer_prefix(layer, sublayer)
        inner_prefix = prefix + options.wrappers[sublayer] * "fn."
        z = layer_norm(tensors, f"{prefix}fn.norm", x)
        z = _shift_tokens(z) if options.token_shift else z
        if sublayer == 0:
            z = _attention(tensors, inner_prefix, z, options.attn_types[layer], options.centred)
        else:
            z = _feed_forward(tensors, inner_prefix, z)
        z = layer_norm(tensors, f"{prefix}fn.norm_out", z) if options.sandwich else z
        return z * tensors[f"{prefix}scale"][0, 0]

    first = second = x  # the two residual streams of a reversible transformer
    for layer in range(len(options.attn_types)):
        first = first + sublayer_output(0, layer, second if options.reversible else first)
        if options.reversible:
            second = second + sublayer_output(1, layer, first)
        else:
            first = first + sublayer_output(1, layer, first)
    x = (first + second) / 2 if options.reversible else first
    x = x / x.max(-1, keepdim=True).values if options.stable else x
    return layer_norm(tensors, "to_logits.0", x) @ tensors["to_logits.1.weight"].T + tensors["to_logits.1.bias"]
