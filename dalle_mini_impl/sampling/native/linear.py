"""Matrices in the layout of `product.c`, and a linear layer of one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.sampling.native.library import MAX_LANES, MatrixStruct


class WeightAndBias(NamedTuple):
    """The tensors of a linear layer or a norm."""

    weight: Tensor
    bias: Tensor | None = None


class NativeMatrix:
    """A weight (out, in) and its bias in the layout of `blocks.h`.

    Args:
        library: the compiled functions.
        pair: weight and bias.
        int8: store the weight as 8-bit integers with one scale per output instead of in bf16.
    """

    def __init__(self, library: Any, pair: WeightAndBias, int8: bool) -> None:
        outputs_per_block = 2 * library.lanes()
        padding = -len(pair.weight) % outputs_per_block
        weight = F.pad(pair.weight.detach().float(), (0, 0, 0, padding))
        self.outputs = len(weight)
        self._scale: Tensor | None = None
        if int8:
            self._scale = weight.abs().amax(1).clamp_min(1e-12) / 127
            weight = (weight / self._scale[:, None]).round()
        self._bias = F.pad(pair.bias.detach().float(), (0, padding)).contiguous() if pair.bias is not None else None
        blocks = weight.to(torch.int8 if int8 else torch.bfloat16)
        blocks = blocks.view(-1, outputs_per_block, weight.shape[1] // 2, 2)
        self._weight = blocks.transpose(1, 2).contiguous()
        self.struct = MatrixStruct(*(_address(part) for part in (self._weight, self._scale, self._bias)))


class NativeLinear:
    """A linear layer, (…, in) -> (…, out) in fp32. Arguments as `NativeMatrix`.

    Raises:
        ValueError: `in` is no multiple of `MAX_LANES`.
    """

    def __init__(self, library: Any, pair: WeightAndBias, int8: bool = False) -> None:
        self._library = library
        self._outputs, self._width = pair.weight.shape
        if self._width % MAX_LANES:
            raise ValueError(f"expected a width in multiples of {MAX_LANES}, got {self._width}; use torch.nn.Linear")
        self._matrix = NativeMatrix(library, pair, int8)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self._width:
            raise ValueError(f"expected vectors of width {self._width}, got {x.shape[-1]}; give the hidden states")
        x = x.float().contiguous()
        rows = x.numel() // self._width
        y = torch.empty(*x.shape[:-1], self._matrix.outputs)
        threads = torch.get_num_threads()
        workspace = torch.empty(self._library.linear_workspace_size(rows, self._width, threads), dtype=torch.uint8)
        self._library.linear(
            self._matrix.struct,
            x.data_ptr(),
            rows,
            self._width,
            self._matrix.outputs,
            y.data_ptr(),
            workspace.data_ptr(),
            threads,
        )
        return y[..., : self._outputs]


def interleave_gates(up: WeightAndBias, down: WeightAndBias, lanes: int) -> tuple[WeightAndBias, WeightAndBias]:
    """The two matrices of a feed-forward layer, its hidden width padded with zeros to whole blocks of outputs.

    Of a gated layer the outputs of `up` alternate: `lanes` of the gate, then the `lanes` values that they gate.
    """
    hidden = down.weight.shape[1]
    padding = -hidden % (2 * lanes)

    def interleave(values: Tensor) -> Tensor:
        parts = F.pad(values.reshape(len(values) // hidden, hidden, -1), (0, 0, 0, padding))
        return parts.unflatten(1, (-1, lanes)).transpose(0, 1).reshape(-1, *values.shape[1:])

    bias = None if up.bias is None else interleave(up.bias)
    padded_down = WeightAndBias(F.pad(down.weight, (0, padding)), down.bias)
    return WeightAndBias(interleave(up.weight), bias), padded_down


def _address(values: Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()
