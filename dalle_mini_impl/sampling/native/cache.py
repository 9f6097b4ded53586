"""A cache of keys and values in the layout of `blocks.h`."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.sampling.native.library import CacheParts
from dalle_mini_impl.sampling.native.masks import LANES, NativeMasks
from dalle_mini_impl.util.errors import UserError


class CacheShape(NamedTuple):
    """What a position of a row leaves in a cache."""

    n_layer: int
    n_head: int
    head_dim: int
    shifted: int
    """Channels that later positions look at, before attention and before the feed-forward layer; 0 for none."""
    length: int
    """Positions of the longest stream."""


class NativeCache:
    """Keys and values of every layer, and the channels that are shifted.

    Args:
        shape: of what is kept.
        rows: streams.
        capacity: positions there is room for.
        attention_masks: what they may look at.
        prompt: the cache that this one continues, the same number of rows for each of its rows.
    """

    def __init__(
        self,
        shape: CacheShape,
        rows: int,
        capacity: int,
        attention_masks: NativeMasks,
        prompt: "NativeCache | None" = None,
    ) -> None:
        n_layer, n_head, head_dim, shifted, length = shape
        capacity = -(-capacity // LANES) * LANES
        self._memory = torch.zeros(2, n_layer, rows, n_head, capacity * head_dim, dtype=torch.bfloat16)
        self._channels = torch.zeros(2 * n_layer, rows, capacity * shifted, dtype=torch.bfloat16)
        self._shape, self._attention_masks, self._prompt = shape, attention_masks, prompt
        begin = prompt.length if prompt else 0
        self._end = min(begin + capacity, length)
        self._table = attention_masks.table(begin, self._end, prompt._end if prompt else 0)
        self.parts: CacheParts = CacheParts(
            prompt=ctypes.addressof(prompt.parts) if prompt else None,
            attention_masks=self._table.address if self._table else None,
            rows=rows,
            branches=rows // prompt.parts.rows if prompt else 1,
            capacity=capacity,
            length=0,
        )
        self._point()

    @property
    def length(self) -> int:
        """Positions filled so far, those of the prompt included."""
        return self.parts.length + (self._prompt.length if self._prompt else 0)

    @length.setter
    def length(self, value: int) -> None:
        self.parts.length = value - (self._prompt.length if self._prompt else 0)

    @property
    def room(self) -> int:
        """Positions that can still come."""
        return min(self.parts.capacity - self.parts.length, self._shape.length - self.length)

    def branch(self, count: int, capacity: int) -> "NativeCache":
        """As `Cache` has it; what the prompt left is read where it is, once for all that continue it.

        So the prompt must not grow afterwards.

        Raises:
            UserError: this one continues another already.
        """
        if self._prompt is not None:
            raise UserError("a cache that continues a prompt cannot be branched again; branch the prompt's")
        return NativeCache(self._shape, self.parts.rows * count, capacity - self.length, self._attention_masks, self)

    def keep(self, rows: Tensor) -> None:
        """As `Cache` has it."""
        self._memory, self._channels = self._memory[:, :, rows], self._channels[:, rows]
        self.parts.branches = self.parts.branches * len(rows) // self.parts.rows
        self.parts.rows = len(rows)
        self._point()

    def _point(self) -> None:
        self.parts.keys, self.parts.values = self._memory[0].data_ptr(), self._memory[1].data_ptr()
        self.parts.channels = self._channels.data_ptr()
