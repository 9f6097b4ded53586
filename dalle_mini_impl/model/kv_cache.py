"""Keys and values of the positions decoded so far, and attention to them.

The caller makes a cache and passes it to the model, which keeps no state of its own. The model advances `length` once
per call, after the last layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.masks import AttentionMask


class KVCache:
    """Keys and values of every layer, allocated once for the whole stream. Meets the protocol `decoder.Cache`.

    Args:
        n_layer: blocks of the model.
        shape: `(B, n_head, T, head_dim)` of one layer's keys, T being the capacity in positions.
        device: of keys and values.
        dtype: of keys and values.
    """

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.keys = torch.zeros(n_layer, *shape, device=device, dtype=dtype)
        self.values = torch.zeros(n_layer, *shape, device=device, dtype=dtype)
        self.length = 0
        """Positions filled so far."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask | None = None
    ) -> Tensor:
        """Store keys and values of the next positions of one layer, and attend from these positions to all so far.

        Args:
            layer: index of the layer.
            q: (B, n_head, T, head_dim).
            k: the same shape.
            v: the same shape.
            attention_mask: which positions each may attend to; None for all up to itself. A single position reads only
                the keys and values that its mask allows.

        Returns:
            (B, n_head, T, head_dim).
        """
        T, end = k.shape[2], self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        if attention_mask is not None and T == 1:
            positions = attention_mask.attended(self.length)
            return F.scaled_dot_product_attention(q, keys[:, :, positions], values[:, :, positions])
        allowed = None
        is_causal = attention_mask is None and end == T
        if attention_mask is not None:
            allowed = attention_mask.allowed[self.length : end, :end]
        elif T > 1 and not is_causal:
            allowed = torch.ones(T, end, dtype=torch.bool, device=q.device).tril(self.length)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed, is_causal=is_causal)

    def branch(self, rows: Tensor, capacity: int) -> "KVCache":
        """As `Cache.branch`; every new row gets a copy of its prompt's keys and values."""
        n_layer, _, n_head, _, head_dim = self.keys.shape
        shape = (len(rows), n_head, capacity, head_dim)
        cache = KVCache(n_layer, shape, self.keys.device, self.keys.dtype)
        copy_positions(self.keys, cache.keys, self.length, rows)
        copy_positions(self.values, cache.values, self.length, rows)
        cache.length = self.length
        return cache

    def branch_bytes(self, count: int, capacity: int) -> int:
        """As `Cache.branch_bytes`."""
        n_layer, _, n_head, _, head_dim = self.keys.shape
        return 2 * n_layer * count * n_head * capacity * head_dim * self.keys.element_size()

    def keep(self, rows: Tensor) -> None:
        """As `Cache.keep`."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]


def copy_positions(source: Tensor, target: Tensor, length: int, rows: Tensor) -> None:
    """Copy the first `length` positions (dimension -2) of some rows (dimension 1) of one tensor to another."""
    target[..., :length, :] = source[..., :length, :].index_select(1, rows.to(source.device))
