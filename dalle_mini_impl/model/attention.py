"""Causal attention with rotary positions in the plane."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask

EPS = 1e-6


def rotary_table(coordinates: Tensor, head_dim: int, base: float) -> Tensor:
    """Angles of rotary position embedding in the plane (RoPE, Su et al. 2021, one half per coordinate).

    Args:
        coordinates: (T, 2) integer place of each position.
        head_dim: width of a head, a multiple of 4.
        base: wavelengths run from 2π to 2π × base positions.

    Returns:
        (T, 2, head_dim) of each position: cosines, and sines with the sign they have in `rotate`.
    """
    pairs = head_dim // 4
    frequencies = base ** -(torch.arange(pairs) / pairs)
    return rotary_from_angles((coordinates[:, :, None] * frequencies).flatten(1))


def rotary_from_angles(angles: Tensor) -> Tensor:
    """Angles (T, head_dim / 2) of the pairs of a head's numbers -> their table (T, 2, head_dim) for `rotate`."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of numbers of x (B, T, …, head_dim) by its position's angle; table (T, 2, head_dim)."""
    cos, sin = table.to(x.dtype).view(len(table), 2, *[1] * (x.ndim - 3), x.shape[-1]).unbind(1)
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat([second, first], -1), sin)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last dimension (Zhang & Sennrich 2019), in the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Multi-head causal self-attention, by default with normalised queries and keys (QK-norm, Henry et al. 2020).

    Args:
        n_embd: C.
        n_head: heads.
        head_dim: width of a head; 0 is C / n_head.
        bias: whether its two matrices add one.
        qk_norm: whether queries and keys are normalised.
        rotate_values: whether values are turned to their positions as queries and keys are.
        attention_mask: which positions each may look at; None for all before.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        head_dim: int = 0,
        *,
        bias: bool = False,
        qk_norm: bool = True,
        rotate_values: bool = False,
        attention_mask: AttentionMask | None = None,
    ) -> None:
        super().__init__()
        self.n_head, self.head_dim = n_head, head_dim or n_embd // n_head
        self.rotate_values, self.attention_mask = rotate_values, attention_mask
        self.qkv = nn.Linear(n_embd, 3 * n_head * self.head_dim, bias=bias)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.out = nn.Linear(n_head * self.head_dim, n_embd, bias=bias)

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Attend from each position to itself and those before it.

        Args:
            x: (B, T, C).
            table: rotary angles of these positions, or None for no rotation.
            cache: keys and values of earlier positions; the new ones are stored in it.
            layer: which of the cache's layers is this one.

        Returns:
            (B, T, C).
        """
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, self.head_dim)
        qk, values = qkv[:, :, :2], qkv[:, :, 2]
        if self.q_norm is not None and self.k_norm is not None:
            qk = rms_norm(qk, torch.stack([self.q_norm.weight, self.k_norm.weight])[:, None])
        if table is not None:
            qk = rotate(qk, table)
            values = rotate(values, table) if self.rotate_values else values
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), values))
        y = (
            cache.attend(layer, q, k, v, self.attention_mask)
            if cache is not None
            else attend_before(q, k, v, self.attention_mask)
        )
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


def attend_before(q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask | None = None) -> Tensor:
    """Attention (B, n_head, T, head_dim) of each position to itself and those before it; all of the same shape."""
    T = q.shape[2]
    if attention_mask is not None:
        return attend(q, k, v, attention_mask.allowed[:T, :T])
    return attend(q, k, v, torch.ones(T, T, dtype=torch.bool, device=q.device).tril())


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
        # Added, because then the backward pass has nothing to do: the softmax gives these places no gradient.
        scores = scores + scores.new_zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ v


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divide x (…, C) by the root of its mean square over the last dimension; times weight (…, C)."""
    weight = weight.to(x.dtype)
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return F.rms_norm(x, x.shape[-1:], eps=EPS) * weight
    # Without gradients a CPU takes three times as long over the above as over these few operations.
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(size.square_().mul_(1 / x.shape[-1]).add_(EPS)).to(x.dtype)
    return x * scale * weight
