"""Causal attention with rotary positions in the plane, and the key/value cache it decodes with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KVCache:
    """Keys and values of every layer, allocated once for the whole stream.

    Passed to the model by whoever decodes; the model keeps no state.

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

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next positions of one layer and return all its keys and values so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def repeat(self, rows: Tensor, capacity: int) -> "KVCache":
        """A cache with room for `capacity` positions whose row i starts as this one's row `rows[i]`.

        A prompt is thus run once, however many candidates continue it.
        """
        n_layer, _, n_head, _, head_dim = self.keys.shape
        shape = (len(rows), n_head, capacity, head_dim)
        cache = KVCache(n_layer, shape, self.keys.device, self.keys.dtype)
        cache.keys[:, :, :, : self.length] = self.keys[:, rows, :, : self.length]
        cache.values[:, :, :, : self.length] = self.values[:, rows, :, : self.length]
        cache.length = self.length
        return cache


def rotary_table(coordinates: Tensor, head_dim: int, base: float) -> Tensor:
    """Angles of rotary position embedding in the plane (RoPE, Su et al. 2021, one half per coordinate).

    Args:
        coordinates: (T, 2) integer place of each position.
        head_dim: width of a head, a multiple of 4.
        base: wavelengths run from 2π to 2π × base positions.

    Returns:
        (T, head_dim // 2, 2) cosine and sine of each pair's angle.
    """
    pairs = head_dim // 4
    frequencies = base ** -(torch.arange(pairs) / pairs)
    angles = (coordinates[:, :, None] * frequencies).flatten(1)  # (T, 2 · pairs)
    return torch.stack([angles.cos(), angles.sin()], -1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of numbers of x (B, n_head, T, head_dim) by its position's angle."""
    first, second = x.chunk(2, -1)
    cos, sin = table[..., 0].to(x.dtype), table[..., 1].to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Attention(nn.Module):
    """Multi-head causal self-attention with normalised queries and keys (QK-norm, Henry et al. 2020)."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.q_norm = nn.RMSNorm(n_embd // n_head, eps=1e-6)
        self.k_norm = nn.RMSNorm(n_embd // n_head, eps=1e-6)
        self.out = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Attend from each position to itself and all before it.

        Args:
            x: (B, T, C).
            table: rotary angles of these positions, or None for no rotation.
            cache: keys and values of earlier positions; the new ones are stored in it.
            layer: which of the cache's layers is this one.

        Returns:
            (B, T, C).
        """
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        q, k = normalise(self.q_norm, q), normalise(self.k_norm, k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        # A single new position sees everything; of several, each sees the cached ones and those up to itself.
        S = k.shape[2]
        allowed = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T) if T > 1 else None
        y = attend(q, k, v, allowed)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention by the faster of two ways.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_head, S, head_dim).
        v: the same shape as k.
        allowed: bool, broadcast to (B, n_head, T, S): what each position may look at; None allows all.

    Returns:
        (B, n_head, T, head_dim).
    """
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    # On a CPU the fused kernel's backward takes five times as long as these two matrix products.
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ v


def normalise(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Apply an RMSNorm in the dtype of its input, which keeps autocast on the fused kernel."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)
