"""A transformer's blocks, head and cache as `step.c` wants them."""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.native.library import Blocks, CacheParts, Layer, Matrix

LANES, LARGEST_HEAD = 16, 256
"""The most in `step.c`."""


class NativeCache:
    """Keys and values of every layer, in the layout of `step.c`.

    Args:
        shape: `(n_layer, rows, n_head, head_dim)`.
        capacity: positions there is room for.
        prompt: the cache that this one continues, `branches` rows for each of its rows.
        branches: see `prompt`.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], capacity: int, prompt: "NativeCache | None" = None, branches: int = 1
    ) -> None:
        n_layer, rows, n_head, head_dim = shape
        capacity = -(-capacity // LANES) * LANES
        self._memory = torch.zeros(2, n_layer, rows, n_head, capacity * head_dim, dtype=torch.bfloat16)
        self._shape, self._prompt = shape, prompt  # the latter to keep it alive
        self.parts: CacheParts = CacheParts(
            self._memory[0].data_ptr(), self._memory[1].data_ptr(),
            ctypes.addressof(prompt.parts) if prompt is not None else None, rows, branches, capacity, 0,
        )  # fmt: skip

    @property
    def length(self) -> int:
        """Positions filled so far, those of the prompt included."""
        return self.parts.length + (self._prompt.length if self._prompt else 0)

    @length.setter
    def length(self, value: int) -> None:
        self.parts.length = value - (self._prompt.length if self._prompt else 0)

    def branch(self, count: int, capacity: int) -> "NativeCache":
        """As `Cache` has it; the prompt's keys and values are read where they are, once for all that continue it.

        So the prompt must not grow afterwards.

        Raises:
            UserError: this one continues another already.
        """
        if self._prompt is not None:
            raise UserError("a cache that continues a prompt cannot be branched again; branch the prompt's")
        n_layer, rows, n_head, head_dim = self._shape
        return NativeCache((n_layer, rows * count, n_head, head_dim), capacity - self.length, self, count)

    def keep(self, rows: Tensor) -> None:
        """As `Cache` has it."""
        self._memory = self._memory[:, :, rows]
        self.parts.keys, self.parts.values = self._memory[0].data_ptr(), self._memory[1].data_ptr()
        self.parts.branches = self.parts.branches * len(rows) // self.parts.rows
        self.parts.rows = len(rows)


class LayerWeights(NamedTuple):
    """What `NativeBlocks` asks for of each block, the norms' weights folded in."""

    qkv: Tensor
    """(3C, C)."""
    out: Tensor
    """(C, C)."""
    gate: Tensor
    """(H, C)."""
    up: Tensor
    """(H, C)."""
    down: Tensor
    """(C, H)."""
    turn: Tensor
    """(T, 2, 2, head_dim): of each position, first for queries and then for keys, cosines and sines."""


class NativeMatrix:
    """A weight (out, in) in the layout of `step.c`: in bf16, or `narrow`: 8-bit integers, one scale per output."""

    def __init__(self, library: Any, weight: Tensor, narrow: bool) -> None:
        side_by_side = 2 * library.lanes()
        weight = weight.detach().float()
        weight = torch.cat([weight, weight.new_zeros(-len(weight) % side_by_side, weight.shape[1])])
        self.outputs = len(weight)
        self._scale: Tensor | None = None
        if narrow:
            self._scale = weight.abs().amax(1).clamp_min(1e-12) / 127
            weight = (weight / self._scale[:, None]).round()
        rows = weight.to(torch.int8 if narrow else torch.bfloat16).view(-1, side_by_side, weight.shape[1] // 2, 2)
        self._weight = rows.transpose(1, 2).contiguous()
        self.parts = Matrix(self._weight.data_ptr(), None if self._scale is None else self._scale.data_ptr())


class NativeBlocks(nn.Module):
    """All blocks of a transformer, and the norm behind them, as one.

    Args:
        library: the compiled functions.
        layers: the blocks' weights.
        n_head: heads per block.
        narrow: keep the matrices as 8-bit integers.
    """

    def __init__(self, library: Any, layers: list[LayerWeights], n_head: int, narrow: bool = False) -> None:
        super().__init__()
        self._library = library
        self._kept: list[Any] = []  # what the tables below point to
        self._table = (Layer * len(layers))()
        hidden, width = layers[0].gate.shape
        for place, layer in zip(self._table, layers, strict=True):
            gated = torch.stack([part.view(-1, library.lanes(), width) for part in (layer.gate, layer.up)], 1)
            for name, weight in (("qkv", layer.qkv), ("out", layer.out), ("up", gated), ("down", layer.down)):
                matrix = NativeMatrix(library, weight.reshape(-1, weight.shape[-1]), narrow)
                setattr(place, name, matrix.parts)
                self._kept.append(matrix)
            turn = layer.turn.float().contiguous()
            place.turn = turn.data_ptr()
            self._kept.append(turn)
        self._shape, self._length = (len(layers), n_head, width // n_head), len(turn)
        self._blocks = Blocks(ctypes.addressof(self._table), *self._shape, hidden)

    def forward(self, x: Tensor, _table: Any, cache: NativeCache | None, _layer: int, _sources: Any = None) -> Tensor:
        """As `Block` has it; (B, T, C) of any dtype -> fp32, normalised. What begins with _ is not needed.

        Raises:
            UserError: the cache has another number of rows, or no room for T more positions.
        """
        B, T, _ = x.shape
        cache = cache or self.new_cache(B, T)
        if cache.parts.rows != B:
            raise UserError(f"{B} rows were given with a cache of {cache.parts.rows}; make a cache of as many")
        left = min(cache.parts.capacity - cache.parts.length, self._length - cache.length)
        if left < T:
            raise UserError(
                f"{T} positions were given, and there is room for {left} more; make a longer cache or stream"
            )
        x = x.to(torch.float32, copy=True).contiguous()
        threads = torch.get_num_threads()
        memory = torch.empty(self._library.room(self._blocks, cache.parts, T, threads), dtype=torch.uint8)
        self._library.step(self._blocks, cache.parts, x.data_ptr(), T, memory.data_ptr(), threads)
        return x

    def new_cache(self, batch: int, capacity: int | None = None) -> NativeCache:
        """As `Transformer` has it."""
        n_layer, n_head, head_dim = self._shape
        return NativeCache((n_layer, batch, n_head, head_dim), capacity or self._length)


class NativeLinear(nn.Module):
    """A linear layer without bias, (…, in) -> (…, out) in fp32, `in` a multiple of 16; see `NativeMatrix`."""

    def __init__(self, library: Any, weight: Tensor, narrow: bool = False) -> None:
        super().__init__()
        self._library, self._out, self._matrix = library, len(weight), NativeMatrix(library, weight, narrow)

    def forward(self, x: Tensor) -> Tensor:
        x, width = x.float().contiguous(), x.shape[-1]
        y, room = torch.empty(*x.shape[:-1], self._matrix.outputs), torch.empty(x.numel(), dtype=torch.bfloat16)
        self._library.linear(
            self._matrix.parts, x.data_ptr(), x.numel() // width, width, self._matrix.outputs, y.data_ptr(),
            room.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return y[..., : self._out]


def fits(n_embd: int, n_head: int) -> bool:
    """Whether `step.c` can compute blocks of this width."""
    return n_embd % (2 * LANES) == 0 and n_embd // n_head % LANES == 0 and n_embd // n_head <= LARGEST_HEAD
