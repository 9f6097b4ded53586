"""Keys and values of the positions decoded so far, and attention to them.

A cache is passed to the model by whoever decodes; the model keeps no state. Its `length` is moved on by the
model after the last layer.
"""

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

ROOM = 32
"""Positions by which a `BranchedCache` grows."""


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

    def branch(self, count: int, capacity: int) -> "Cache":
        """A cache of rows that continue this one's, `count` for each: first those of row 0, then those of row 1 …

        A prompt is thus run once, however many candidates continue it.

        Args:
            count: rows per row of this cache.
            capacity: positions the longest stream will have.
        """
        return BranchedCache(self, count) if self.keys.device.type == "cpu" else self.repeat(count, capacity)

    def repeat(self, count: int, capacity: int) -> "KVCache":
        """A cache with room for `capacity` positions that starts with every row `count` times."""
        n_layer, rows, n_head, _, head_dim = self.keys.shape
        shape = (rows * count, n_head, capacity, head_dim)
        cache = KVCache(n_layer, shape, self.keys.device, self.keys.dtype)
        for mine, theirs in ((self.keys, cache.keys), (self.values, cache.values)):
            theirs[:, :, :, : self.length] = mine[:, :, :, : self.length].repeat_interleave(count, 1)
        cache.length = self.length
        return cache


class BranchedCache:
    """Rows that share the keys and values of a prompt, decoded one position at a time on a CPU.

    The prompt's keys are read once for all rows that continue it, in one matrix product per head, instead of
    once per row. The rows' own are kept without gaps, which is what makes a CPU's small products fast, and so
    move to a larger place every `ROOM` positions.

    Args:
        prompt: what is shared, with P rows.
        count: rows per prompt row, N.
    """

    def __init__(self, prompt: KVCache, count: int) -> None:
        n_layer, rows, self._heads, _, self._width = prompt.keys.shape
        self._groups, self._count = rows * self._heads, count
        self._shared_length = self.length = prompt.length
        shared = (part[:, :, :, : prompt.length].flatten(1, 2) for part in (prompt.keys, prompt.values))
        self._shared_keys, self._shared_values = (part.contiguous() for part in shared)  # (n_layer, P·n_head, L, D)
        empty = prompt.keys.new_empty(self._groups * count, 0, self._width)
        self._keys, self._values = [empty] * n_layer, [empty] * n_layer
        self._closed = prompt.keys.new_zeros(0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the next position of one layer, which attends to all before it and to itself.

        Args:
            layer: which block asks.
            q: (P · N, n_head, 1, head_dim).
            k: the same shape.
            v: the same shape.

        Returns:
            (P · N, n_head, 1, head_dim).
        """
        place = self.length - self._shared_length
        if place == self._keys[layer].shape[1]:
            self._grow(layer)
        keys, values = self._keys[layer], self._values[layer]
        for stored, part in ((keys, k), (values, v)):
            stored.view(-1, self._heads, self._count, *stored.shape[1:])[:, :, :, place] = self._grouped(part)
        # Rows of one prompt and head lie side by side: (P · n_head, N, D), or one by one (P · n_head · N, 1, D).
        q = self._grouped(q * self._width**-0.5).reshape(self._groups, self._count, self._width).contiguous()
        shared = q @ self._shared_keys[layer].transpose(1, 2)
        own = (q.view(-1, 1, self._width) @ keys.transpose(1, 2)).view(self._groups, self._count, -1)
        shares = torch.cat([shared, own.add_(self._closed_after(place, keys))], -1).softmax(-1)
        own = shares[..., self._shared_length :].reshape(-1, 1, keys.shape[1])
        y = (own @ values).view_as(q).add_(shares[..., : self._shared_length] @ self._shared_values[layer])
        return y.view(-1, self._heads, self._count, self._width).transpose(1, 2).flatten(0, 1)[:, :, None]

    def _grouped(self, part: Tensor) -> Tensor:
        """(P · N, n_head, 1, D) -> (P, n_head, N, D)."""
        return part.squeeze(2).unflatten(0, (-1, self._count)).transpose(1, 2)

    def _grow(self, layer: int) -> None:
        for parts in (self._keys, self._values):
            rows, filled, width = parts[layer].shape
            larger = parts[layer].new_empty(rows, filled + ROOM, width)
            larger[:, :filled], larger[:, filled:] = parts[layer], 0
            parts[layer] = larger

    def _closed_after(self, place: int, keys: Tensor) -> Tensor:
        """(room,): 0 up to `place`, minus infinity behind it, where nothing is stored yet."""
        if len(self._closed) != keys.shape[1]:
            self._closed = keys.new_full((keys.shape[1],), -torch.inf)
            self._closed[:place] = 0
        self._closed[place] = 0
        return self._closed


Cache: TypeAlias = KVCache | BranchedCache
