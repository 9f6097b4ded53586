"""Keys and values of the positions decoded so far, and attention to them.

A cache is passed to the model by whoever decodes; the model keeps no state. Its `length` is moved on by the
model after the last layer.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.masks import AttentionMask


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
        shifted: channels that later positions look at themselves, once for attention and once for the feed-forward
            layer; 0 where nothing is shifted.
    """

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, shifted: int = 0
    ) -> None:
        self.keys = torch.zeros(n_layer, *shape, device=device, dtype=dtype)
        self.values = torch.zeros(n_layer, *shape, device=device, dtype=dtype)
        kept = (2 * n_layer, shape[0], shape[2], shifted) if shifted else (0, shape[0], 0, 0)
        self.channels = torch.zeros(*kept, device=device, dtype=dtype)
        self.length = 0
        """Positions filled so far."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask | None = None
    ) -> Tensor:
        """Store the next positions of one layer; each attends to itself and those before it.

        Args:
            layer: which block asks.
            q: (B, n_head, T, head_dim).
            k: the same shape.
            v: the same shape.
            attention_mask: which positions each may look at; None for all before. A single position reads only those.

        Returns:
            (B, n_head, T, head_dim).
        """
        T, end = k.shape[2], self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        if attention_mask is not None and T == 1:
            places = attention_mask.seen(self.length)
            return F.scaled_dot_product_attention(q, keys[:, :, places], values[:, :, places])
        allowed = None
        if attention_mask is not None:
            allowed = attention_mask.allowed[self.length : end, :end]
        elif T > 1:
            allowed = torch.ones(T, end, dtype=torch.bool, device=q.device).tril(self.length)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)

    def remember(self, slot: int, z: Tensor) -> Tensor:
        """Store channels (B, T, c) of the next positions in one of 2 · n_layer places; gives those of all so far."""
        end = self.length + z.shape[1]
        self.channels[slot, :, self.length : end] = z
        return self.channels[slot, :, :end]

    def branch(self, count: int, capacity: int) -> "KVCache":
        """As `Cache` has it; every row gets a copy of the prompt."""
        n_layer, rows, n_head, _, head_dim = self.keys.shape
        shape = (rows * count, n_head, capacity, head_dim)
        cache = KVCache(n_layer, shape, self.keys.device, self.keys.dtype, self.channels.shape[3])
        pairs = ((self.keys, cache.keys), (self.values, cache.values), (self.channels, cache.channels))
        for mine, theirs in pairs:
            theirs[..., : self.length, :] = mine[..., : self.length, :].repeat_interleave(count, 1)
        cache.length = self.length
        return cache

    def keep(self, rows: Tensor) -> None:
        """As `Cache` has it."""
        self.keys, self.values, self.channels = self.keys[:, rows], self.values[:, rows], self.channels[:, rows]
