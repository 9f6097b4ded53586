"""Keys and values of the positions decoded so far, and attention to them.

A cache is passed to the model by whoever decodes; the model keeps no state. Its `length` is moved on by the
model after the last layer.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Cache(Protocol):
    """What decoding asks of a cache; where keys and values lie is between it and the model that made it."""

    length: int
    """Positions filled so far."""

    def branch(self, count: int, capacity: int) -> "Cache":
        """A cache of rows that continue this one's, `count` for each: first those of row 0, then those of row 1 …

        A prompt is thus run once, however many candidates continue it.

        Args:
            count: rows per row of this cache.
            capacity: positions the longest stream will have.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with just these rows (n,) of a branched cache, in this order, as many for each row of the prompt."""
        ...


class KVCache:
    """Keys and values of every layer, allocated once for the whole stream.

    Args:
        n_layer: blocks of the model.
        shape: `(B, n_head, T, head_dim)` of one layer's keys, T being the longest stream it will hold.
        device: where it lives.
        dtype: of keys and values.
    """

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.keys = torch.zeros(n_layer, *shape, device=device, dtype=dtype)
        self.values = torch.zeros(n_layer, *shape, device=device, dtype=dtype)
        self.length = 0
        """Positions filled so far."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the next positions of one layer; each attends to all before it and to itself.

        Args:
            layer: which block asks.
            q: (B, n_head, T, head_dim).
            k: the same shape.
            v: the same shape.

        Returns:
            (B, n_head, T, head_dim).
        """
        T, end = k.shape[2], self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        allowed = torch.ones(T, end, dtype=torch.bool, device=q.device).tril(self.length) if T > 1 else None
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)

    def branch(self, count: int, capacity: int) -> "KVCache":
        """As `Cache` has it; every row gets a copy of the prompt."""
        n_layer, rows, n_head, _, head_dim = self.keys.shape
        shape = (rows * count, n_head, capacity, head_dim)
        cache = KVCache(n_layer, shape, self.keys.device, self.keys.dtype)
        for mine, theirs in ((self.keys, cache.keys), (self.values, cache.values)):
            theirs[:, :, :, : self.length] = mine[:, :, :, : self.length].repeat_interleave(count, 1)
        cache.length = self.length
        return cache

    def keep(self, rows: Tensor) -> None:
        """As `Cache` has it."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
