"""A transformer made ready for decoding on a CPU: weights laid out once for its matrix kernels.

What is packed computes, in bf16, the same numbers for a row whatever other rows are beside it, so a candidate
does not depend on how many there are. It can no longer be trained or saved.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.transformer import Block, SwiGLU, Transformer

PRECISIONS = ("auto", "fp32", "bf16", "int8")
ROWS = 32
"""Rows the layout is chosen for; others work too."""
INT8_BLOCK = 32


class PackedLinear(nn.Module):
    """A linear layer without bias, (…, in) -> (…, out), in oneDNN's own layout of the weight (out, in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), ROWS)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, activation, [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output multiplied with `other`, in the same pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "mul")


class PackedSwiGLU(nn.Module):
    """`SwiGLU` whose activation and product are part of its matrix products."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        gate, up = mlp.up.weight.chunk(2)
        self.gate, self.up, self.down = PackedLinear(gate), PackedLinear(up), PackedLinear(mlp.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up.times(x, self.gate(x, "swish")))


class Int8Linear(nn.Module):
    """A linear layer without bias whose weight (out, in) is kept as 8-bit integers, one scale per output."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        self.weight, self.scale = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
        return y.unflatten(0, x.shape[:-1])


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices by itself."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose_precision(precision: str, device: str) -> str:
    """`auto` -> the fastest precision whose pictures are as good: bf16 where the device has it.

    Raises:
        UserError: there is no such precision, or the device does not offer it.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; expected {', '.join(PRECISIONS)}")
    if precision == "auto":
        return "bf16" if device.startswith("cuda") or (device == "cpu" and has_bf16()) else "fp32"
    if precision == "int8" and device != "cpu":
        raise UserError(f"precision int8 was given with device {device}; it is for cpu")
    if precision != "fp32" and device == "cpu" and not has_bf16():
        raise UserError(f"precision {precision} was given, but this CPU has no bf16; use fp32")
    return precision


@torch.no_grad()
def pack(transformer: Transformer, precision: str, ids: tuple[int, int]) -> Transformer:
    """Make a transformer ready for decoding, in place.

    Args:
        transformer: on its device; afterwards only good for computing.
        precision: `fp32`, `bf16`, or `int8` (weights alone, CPU).
        ids: `(first, end)` of the ids that will be drawn, whose part of the head is packed.

    Returns:
        The same transformer.
    """
    transformer.eval().requires_grad_(False)
    if precision == "fp32":
        return transformer
    transformer.bfloat16()
    if transformer.embed.weight.device.type != "cpu":
        return transformer
    for block in cast(Iterable[Block], transformer.blocks):
        for name in ("qkv", "out"):
            setattr(block.attention, name, _packed(getattr(block.attention, name).weight, precision))
        if precision == "bf16":
            block.mlp = cast(SwiGLU, PackedSwiGLU(block.mlp))
        else:
            for name in ("up", "down"):
                setattr(block.mlp, name, _packed(getattr(block.mlp, name).weight, precision))
    transformer.heads[ids] = _packed(transformer.head.weight[ids[0] : ids[1]], precision)
    return transformer


def _packed(weight: Tensor, precision: str) -> nn.Module:
    # The 8-bit kernel reads whole blocks and does not check that there are any.
    fits = all(side % INT8_BLOCK == 0 for side in weight.shape)
    return Int8Linear(weight) if precision == "int8" and fits else PackedLinear(weight)
