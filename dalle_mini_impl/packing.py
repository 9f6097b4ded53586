"""A transformer made ready for decoding on a CPU: weights laid out once for its matrix kernels.

What is packed computes, in bf16, the same numbers for a row whatever other rows are beside it, so a candidate
does not depend on how many there are. It can no longer be trained or saved.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.attention import RMSNorm, attend_before
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.kv_cache import Cache
from dalle_mini_impl.transformer import Block, Transformer

PRECISIONS = ("auto", "fp32", "bf16", "int8")
ROWS = 32
"""Rows the layout is chosen for; others work too."""
INT8_BLOCK = 32
SHORTEST = 1e-6
"""Vectors shorter than this stay short: nothing is divided by zero."""


class PackedLinear(nn.Module):
    """A linear layer without bias, (…, in) -> (…, out), in oneDNN's own layout of the weight (out, in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def swish(self, x: Tensor) -> Tensor:
        """The layer's output through y · sigmoid(y), in the same pass."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "swish", [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output multiplied with `other`, in the same pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output added to `other`, in the same pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "add")


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

    def swish(self, x: Tensor) -> Tensor:
        """As `PackedLinear` has it; so the others."""
        return F.silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) * other

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) + other


class PackedBlock(nn.Module):
    """A transformer block of half as many operations.

    The norms' weights are part of the matrices behind them, those of queries and keys of the rotary table, and sums
    and products of the matrix products before them. The norms' epsilon is left out.

    Args:
        block: what to pack.
        table: (T, 2, head_dim) rotary angles of the whole stream, or None for no rotation.
        precision: `bf16` or `int8`.
    """

    table: Tensor

    def __init__(self, block: Block, table: Tensor | None, precision: str) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.n_head, self.turns = attention.n_head, table is not None
        gate, up = (part * gain(block.mlp_norm) for part in mlp.up.weight.chunk(2))
        self.qkv = _packed(attention.qkv.weight * gain(block.attention_norm), precision)
        self.out, self.down = _packed(attention.out.weight, precision), _packed(mlp.down.weight, precision)
        self.gate, self.up = _packed(gate, precision), _packed(up, precision)
        gains = torch.stack([gain(attention.q_norm), gain(attention.k_norm)])[:, None]  # (2, 1, head_dim)
        if table is not None:
            cos, sin = table[:, :, None, None].float().unbind(1)
            # A sine meets the other half of its pair, and so that one's weight.
            gains = torch.stack([cos * gains, sin * gains.roll(gains.shape[-1] // 2, -1)])
        self.register_buffer("table", gains.bfloat16(), persistent=False)

    def forward(self, x: Tensor, table: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """As `Block` has it; `table` is not needed."""
        B, T, C = x.shape
        qkv = self.qkv(unit(x)).view(B, T, 3, self.n_head, C // self.n_head)
        start = cache.length if cache is not None else 0
        qk = self._turned(unit(qkv[:, :, :2]), start)
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), qkv[:, :, 2]))
        y = cache.attend(layer, q, k, v) if cache is not None else attend_before(q, k, v)
        x = self.out.plus(y.transpose(1, 2).reshape(B, T, C), x)
        z = unit(x)
        return self.down.plus(self.up.times(z, self.gate.swish(z)), x)

    def _turned(self, qk: Tensor, start: int) -> Tensor:
        """Normalised queries and keys (B, T, 2, n_head, head_dim), weighted and turned to their positions."""
        if not self.turns:
            return qk * self.table
        cos, sin = self.table[:, start : start + qk.shape[1]]
        first, second = qk.chunk(2, -1)
        return torch.addcmul(qk * cos, torch.cat([second, first], -1), sin)


class Unit(nn.Module):
    """`unit` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


def unit(x: Tensor) -> Tensor:
    """X (…, C) at length 1."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min_(SHORTEST)
    return x / size.to(x.dtype)


def gain(norm: RMSNorm) -> Tensor:
    """What a vector of length 1 is multiplied with to be what the norm makes of it, (C,)."""
    return norm.weight.float() * len(norm.weight) ** 0.5


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
    if transformer.embed.weight.device.type != "cpu":
        return transformer.bfloat16()
    blocks = cast(Iterable[Block], transformer.blocks)
    transformer.blocks = nn.ModuleList(PackedBlock(block, transformer.table, precision) for block in blocks)
    transformer.head.weight.mul_(gain(transformer.norm))
    transformer.heads[ids] = _packed(transformer.head.weight[ids[0] : ids[1]], precision)
    transformer.norm = cast(RMSNorm, Unit())
    return transformer.bfloat16()


def _packed(weight: Tensor, precision: str) -> PackedLinear | Int8Linear:
    # The 8-bit kernel reads whole blocks and does not check that there are any.
    fits = all(side % INT8_BLOCK == 0 for side in weight.shape)
    return Int8Linear(weight) if precision == "int8" and fits else PackedLinear(weight)
