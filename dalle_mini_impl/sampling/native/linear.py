"""A matrix as `product.c` wants it, and a layer of one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.sampling.native.library import Matrix


class WeightAndBias(NamedTuple):
    """A weight and a bias."""

    weight: Tensor
    bias: Tensor | None = None


class NativeMatrix:
    """A weight (out, in) in the layout of `blocks.h`: in bf16, or `narrow`: 8-bit integers, one scale per output."""

    def __init__(self, library: Any, pair: WeightAndBias, narrow: bool) -> None:
        side_by_side = 2 * library.lanes()
        padding = -len(pair.weight) % side_by_side
        weight = F.pad(pair.weight.detach().float(), (0, 0, 0, padding))
        self.outputs = len(weight)
        self._scale: Tensor | None = None
        if narrow:
            self._scale = weight.abs().amax(1).clamp_min(1e-12) / 127
            weight = (weight / self._scale[:, None]).round()
        self._bias = F.pad(pair.bias.detach().float(), (0, padding)).contiguous() if pair.bias is not None else None
        rows = weight.to(torch.int8 if narrow else torch.bfloat16).view(-1, side_by_side, weight.shape[1] // 2, 2)
        self._weight = rows.transpose(1, 2).contiguous()
        self.parts = Matrix(*(_address(part) for part in (self._weight, self._scale, self._bias)))


class NativeLinear(nn.Module):
    """A linear layer, (…, in) -> (…, out) in fp32, `in` a multiple of 16; see `NativeMatrix`."""

    def __init__(self, library: Any, pair: WeightAndBias, narrow: bool = False) -> None:
        super().__init__()
        self._library, self._out, self._matrix = library, len(pair.weight), NativeMatrix(library, pair, narrow)

    def forward(self, x: Tensor) -> Tensor:
        x, width = x.float().contiguous(), x.shape[-1]
        y, room = torch.empty(*x.shape[:-1], self._matrix.outputs), torch.empty(x.numel(), dtype=torch.bfloat16)
        self._library.linear(
            self._matrix.parts,
            x.data_ptr(),
            x.numel() // width,
            width,
            self._matrix.outputs,
            y.data_ptr(),
            room.data_ptr(),
            torch.get_num_threads(),
        )
        return y[..., : self._out]


def in_tiles(up: WeightAndBias, down: WeightAndBias, lanes: int) -> tuple[WeightAndBias, WeightAndBias]:
    """The matrices of a feed-forward layer, its width a multiple of a tile's: zeros are added.

    Vectors of the gate's outputs come in turn with vectors of those that it gates.
    """
    hidden = down.weight.shape[1]
    padding = -hidden % (2 * lanes)

    def in_turn(values: Tensor) -> Tensor:
        parts = F.pad(values.reshape(len(values) // hidden, hidden, -1), (0, 0, 0, padding))
        return parts.unflatten(1, (-1, lanes)).transpose(0, 1).reshape(-1, *values.shape[1:])

    bias = None if up.bias is None else in_turn(up.bias)
    return WeightAndBias(in_turn(up.weight), bias), WeightAndBias(F.pad(down.weight, (0, padding)), down.bias)


def _address(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()
