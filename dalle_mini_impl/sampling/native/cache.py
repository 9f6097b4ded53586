"""A cache of keys and values in the layout of `blocks.h`."""

import contextlib
import ctypes
import math
import mmap
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.sampling.native.library import CacheStruct
from dalle_mini_impl.sampling.native.masks import MAX_LANES, NativeMasks
from dalle_mini_impl.util.errors import UserError

LARGE_PAGE = 2**21
"""Bytes of a large page of memory on most machines."""


class CacheShape(NamedTuple):
    """What a cache stores per position of a row."""

    n_layer: int
    n_head: int
    head_dim: int
    shifted: int
    """Channels that later positions take over, before attention and again before the feed-forward layer; 0 for no token
    shift."""
    length: int
    """Positions of the longest stream."""


class NativeCache:
    """Keys and values of every layer, and shifted channels. Meets the protocol `model.decoder.Cache`.

    Args:
        shape: what is stored per position.
        rows: number of streams.
        capacity: number of positions.
        attention_masks: which positions each may attend to.
        prompt: the cache that this one continues.
        prompt_rows: (rows,) which of its rows each row continues, on the CPU; None without a prompt.
    """

    def __init__(
        self,
        shape: CacheShape,
        rows: int,
        capacity: int,
        attention_masks: NativeMasks,
        prompt: "NativeCache | None" = None,
        prompt_rows: Tensor | None = None,
    ) -> None:
        n_layer, n_head, head_dim, shifted, length = shape
        capacity = -(-capacity // MAX_LANES) * MAX_LANES
        self._memory = zeros(2, n_layer, rows, n_head, capacity * head_dim)
        self._channels = torch.zeros(2 * n_layer, rows, capacity * shifted, dtype=torch.bfloat16)
        self.shape = shape
        self._attention_masks = attention_masks
        self._prompt = prompt
        self._prompt_rows = torch.zeros(rows) if prompt_rows is None else prompt_rows
        begin = prompt.length if prompt else 0
        self._end = min(begin + capacity, length)
        self._table = attention_masks.table(begin, self._end, prompt._end if prompt else 0)
        self.struct: CacheStruct = CacheStruct(
            prompt=ctypes.addressof(prompt.struct) if prompt else None,
            attention_masks=self._table.address if self._table else None,
            rows=rows,
            capacity=capacity,
            length=0,
        )
        self._set_addresses()

    @property
    def length(self) -> int:
        """Positions filled so far, those of the prompt included."""
        return self.struct.length + (self._prompt.length if self._prompt else 0)

    @length.setter
    def length(self, value: int) -> None:
        self.struct.length = value - (self._prompt.length if self._prompt else 0)

    @property
    def free(self) -> int:
        """Positions that can still be added."""
        return min(self.struct.capacity - self.struct.length, self.shape.length - self.length)

    def branch(self, rows: Tensor, capacity: int) -> "NativeCache":
        """As `Cache.branch`. The prompt's keys and values are not copied, so the prompt must not grow afterwards.

        Raises:
            UserError: this cache already continues another.
            ValueError: it has no such row.
        """
        if self._prompt is not None:
            raise UserError(
                "expected the cache of a prompt, got one that continues a prompt; branch the prompt's cache"
            )
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.struct.rows:
            raise ValueError(f"expected rows from 0 to {self.struct.rows - 1}, got {rows.tolist()}; name rows of this")
        return NativeCache(self.shape, len(rows), capacity - self.length, self._attention_masks, self, rows)

    def branch_bytes(self, count: int, capacity: int) -> int:
        """As `Cache.branch_bytes`."""
        n_layer, n_head, head_dim, shifted, _ = self.shape
        positions = -(-(capacity - self.length) // MAX_LANES) * MAX_LANES
        numbers = 2 * n_layer * count * positions * (n_head * head_dim + shifted)
        return numbers * self._memory.element_size()

    def keep(self, rows: Tensor) -> None:
        """As `Cache.keep`."""
        kept = zeros(*self._memory.shape[:2], len(rows), *self._memory.shape[3:])
        self._memory = torch.index_select(self._memory, 2, rows, out=kept)
        self._channels = self._channels[:, rows]
        self._prompt_rows = self._prompt_rows[rows]
        self.struct.rows = len(rows)
        self._set_addresses()

    def _set_addresses(self) -> None:
        self._prompt_rows = self._prompt_rows.to(torch.int32).contiguous()
        self.struct.prompt_rows = self._prompt_rows.data_ptr()
        self.struct.keys = self._memory[0].data_ptr()
        self.struct.values = self._memory[1].data_ptr()
        self.struct.channels = self._channels.data_ptr()


def zeros(*shape: int) -> Tensor:
    """Zeros in bf16, in large pages of memory where the system has them.

    All keys and values are read at every step; with pages of 4 KiB a third of the time goes into looking up addresses.
    """
    size = math.prod(shape) * 2
    if size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    values = torch.frombuffer(memory, dtype=torch.uint8)
    start = -values.data_ptr() % LARGE_PAGE
    return values[start : start + size].view(torch.bfloat16).view(shape)
