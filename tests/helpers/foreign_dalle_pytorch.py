"""A whole DALLE of DALLE-pytorch: the layout of its file, and a slow, obvious version of what it computes.

Written from the layout alone, with functions on a table of tensors: one sequence, one head and one position at a time.
"""

import cmath
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import foreign_image_tokenizers
from helpers.foreign_image_tokenizers import Shapes, Tensors, random_tensors

TEXT_VOCAB, LENGTH, SIDE, IDS = 41, 5, 4, 61
PREFIX, TEXT = 1 + LENGTH, TEXT_VOCAB + LENGTH
DIM, HEADS, SIZE = 20, 3, 14
"""Heads of 14 channels, of which 12 are turned; 3 × 14 is not 20."""


@dataclass(frozen=True)
class Kind:
    """A DALLE's options."""

    attention: tuple[str, ...] = ("full", "axial_row")
    nests: tuple[int, int] = (5, 4)
    """How many `fn.` precede names in attention and in the feed-forward layer."""
    rotary: bool = True
    sandwich: bool = False
    reversible: bool = False
    stable: bool = False
    tied: bool = False
    axial: str = "image_pos_emb.weights."

    @property
    def shift(self) -> bool:
        return self.nests in ((5, 4), (3, 3))

    def half(self, layer: int, part: int) -> str:
        if self.reversible:
            return f"transformer.layers.blocks.{layer}.{'fg'[part]}.net."
        return f"transformer.layers.layers.{layer}.{part}."

    @property
    def hparams(self) -> dict:
        return {
            "num_text_tokens": TEXT_VOCAB,
            "text_seq_len": LENGTH,
            "dim": DIM,
            "depth": len(self.attention),
            "heads": HEADS,
            "dim_head": SIZE,
            "attn_types": self.attention,
            "stable": self.stable,
        }


def make_tensors(kind: Kind, seed: int = 0) -> Tensors:
    """All but the image tokenizer, every one of which matters."""
    total = TEXT + IDS
    shapes: Shapes = {
        "to_logits.0.weight": (DIM,),
        "to_logits.0.bias": (DIM,),
        "to_logits.1.weight": (total, DIM),
        "to_logits.1.bias": (total,),
    }
    if not kind.tied:
        shapes |= {"text_emb.weight": (TEXT, DIM), "image_emb.weight": (IDS, DIM)}
    if not kind.rotary:
        shapes |= {
            "text_pos_emb.weight": (PREFIX, DIM),
            f"{kind.axial}0": (1, SIDE, 1, DIM),
            f"{kind.axial}1": (1, 1, SIDE, DIM),
        }
    for layer in range(len(kind.attention)):
        for part, nest in enumerate(kind.nests):
            half, inner = kind.half(layer, part), kind.half(layer, part) + nest * "fn."
            norms = ("norm", "norm_out") if kind.sandwich else ("norm",)
            shapes |= {f"{half}scale": (1, 1, DIM)}
            shapes |= {f"{half}fn.{norm}.{name}": (DIM,) for norm in norms for name in ("weight", "bias")}
            if part == 0:
                shapes |= {
                    f"{inner}to_qkv.weight": (3 * HEADS * SIZE, DIM),
                    f"{inner}to_out.0.bias": (DIM,),
                    f"{inner}to_out.0.weight": (DIM, HEADS * SIZE),
                }
            else:
                shapes |= {
                    f"{inner}net.0.weight": (8 * DIM, DIM),
                    f"{inner}net.0.bias": (8 * DIM,),
                    f"{inner}net.3.weight": (DIM, 4 * DIM),
                    f"{inner}net.3.bias": (DIM,),
                }
    tensors = random_tensors(shapes, seed, gain=1.5)
    for name in tensors:
        if name.endswith("scale") or name == "to_logits.0.weight":
            tensors[name] += 1
    if kind.rotary:
        generator = torch.Generator().manual_seed(seed)
        angles = 9 * torch.randn(1, PREFIX + SIDE**2, 6, generator=generator)
        tensors["transformer.pos_emb"] = angles.repeat_interleave(2, -1)
    if kind.tied:
        for name in ("text_emb.linear", "image_emb.linear"):
            tensors |= {f"{name}.{end}": tensors[f"to_logits.1.{end}"] for end in ("weight", "bias")}
    return tensors


def sees(kind: str, position: int, other: int) -> bool:
    """Whether a position may look at another."""
    if other > position or position < PREFIX or other < PREFIX:
        return other <= position
    down = (position - PREFIX) // SIDE - (other - PREFIX) // SIDE
    right = (position - PREFIX) % SIDE - (other - PREFIX) % SIDE
    return {
        "full": True,
        "axial_row": down == 0,
        "axial_col": right == 0,
        "conv_like": 0 <= down < 5 and 0 <= right < 5,
    }[kind]


def norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * t[f"{name}.weight"] + t[f"{name}.bias"]


def shifted(z: Tensor) -> Tensor:
    moved = z.clone()
    quarter = DIM // 4
    for position in range(len(z)):
        place = position - PREFIX
        above, left = (place >= SIDE, SIDE), (place % SIDE > 0, 1)
        if place < 0:
            above = left = (position > 0, 1)
        for number, (there, back) in enumerate((above, left)):
            channels = slice(number * quarter, (number + 1) * quarter)
            moved[position, channels] = z[position - back, channels] if there else 0
    return moved


def turned(vector: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring channels as a complex number, multiplied by that of the angle."""
    numbers = vector.tolist()
    for first in range(0, len(angles), 2):
        number = complex(*numbers[first : first + 2]) * cmath.exp(1j * float(angles[first]))
        numbers[first : first + 2] = [number.real, number.imag]
    return torch.tensor(numbers, dtype=torch.float64)


def attention(t: Tensors, name: str, z: Tensor, kind: str) -> Tensor:
    qkv = (z @ t[f"{name}to_qkv.weight"].T).view(len(z), 3, HEADS, SIZE)
    if "transformer.pos_emb" in t:
        angles = t["transformer.pos_emb"][0]
        for position, part, head in ((p, i, h) for p in range(len(z)) for i in range(3) for h in range(HEADS)):
            qkv[position, part, head] = turned(qkv[position, part, head], angles[position])
    out = torch.zeros(len(z), HEADS, SIZE, dtype=torch.float64)
    for position in range(len(z)):
        others = [other for other in range(len(z)) if sees(kind, position, other)]
        for head in range(HEADS):
            q, k, v = qkv[position, 0, head], qkv[others, 1, head], qkv[others, 2, head]
            out[position, head] = torch.softmax(k @ q / math.sqrt(SIZE), 0) @ v
    return out.flatten(1) @ t[f"{name}to_out.0.weight"].T + t[f"{name}to_out.0.bias"]


def feed_forward(t: Tensors, name: str, z: Tensor) -> Tensor:
    x, gates = (z @ t[f"{name}net.0.weight"].T + t[f"{name}net.0.bias"]).chunk(2, -1)
    return (x * F.gelu(gates)) @ t[f"{name}net.3.weight"].T + t[f"{name}net.3.bias"]


def logits(tensors: Tensors, kind: Kind, caption: list[int], image_ids: list[int]) -> Tensor:
    """(T, V) scores behind BOS, the padded caption and all image ids."""
    t = {name: value.double() for name, value in tensors.items()}
    text = [0] + [caption[place] if place < len(caption) else TEXT_VOCAB + place for place in range(LENGTH)]
    table = t["to_logits.1.weight"] if kind.tied else torch.cat([t["text_emb.weight"], t["image_emb.weight"]])
    x = torch.stack([table[number] for number in [*text, *(TEXT + number for number in image_ids)]])
    if not kind.rotary:
        rows, columns = t[f"{kind.axial}0"], t[f"{kind.axial}1"]
        x[:PREFIX] += t["text_pos_emb.weight"]
        x[PREFIX:] += torch.stack([rows[0, n // SIDE, 0] + columns[0, 0, n % SIDE] for n in range(len(image_ids))])

    def change(part: int, layer: int, x: Tensor) -> Tensor:
        half = kind.half(layer, part)
        inner = half + kind.nests[part] * "fn."
        z = norm(t, f"{half}fn.norm", x)
        z = shifted(z) if kind.shift else z
        z = attention(t, inner, z, kind.attention[layer]) if part == 0 else feed_forward(t, inner, z)
        return (norm(t, f"{half}fn.norm_out", z) if kind.sandwich else z) * t[f"{half}scale"][0, 0]

    first = second = x
    for layer in range(len(kind.attention)):
        first = first + change(0, layer, second if kind.reversible else first)
        if kind.reversible:
            second = second + change(1, layer, first)
        else:
            first = first + change(1, layer, first)
    x = (first + second) / 2 if kind.reversible else first
    x = x / x.max(-1, keepdim=True).values if kind.stable else x
    return norm(t, "to_logits.0", x) @ t["to_logits.1.weight"].T + t["to_logits.1.bias"]


KINDS = {
    "1.6.6": Kind(("full", "axial_row", "axial_col", "conv_like")),
    "1.6.6, no shift": Kind(nests=(3, 2), stable=True, tied=True),
    "before the cache": Kind(nests=(3, 3), sandwich=True),
    "the first": Kind(("conv_like", "full"), nests=(2, 2), rotary=False, axial="image_pos_emb.weights_"),
    "reversible": Kind(("axial_col", "full"), rotary=False, reversible=True, sandwich=True),
}
PICTURE = [3, 60, 0, 17, 5, 5, 41, 8, 29, 33, 2, 60, 12, 48, 7, 19]
VAE = random_tensors(foreign_image_tokenizers.dalle_pytorch_shapes(2, 0, hidden=11, embed=7, ids=IDS), gain=1.6)


def content(kind: Kind = KINDS["1.6.6"], vae: Tensors = VAE, **changes) -> dict:
    """What is in a dalle.pt."""
    weights = {**{f"vae.{name}": value for name, value in vae.items()}, **make_tensors(kind)}
    return {"hparams": kind.hparams, "vae_params": None, "weights": weights, **changes}
