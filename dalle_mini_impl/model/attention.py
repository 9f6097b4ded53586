"""Causal self-attention with rotary position embedding in the plane."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask

EPS = 1e-6
"""Added to the mean square in `rms_norm`."""
SMALLEST_HEAD = 16
"""Least width of a head that FlexAttention takes."""


def rotary_table(coordinates: Tensor, head_dim: int, base: float) -> Tensor:
    """Rotary position embedding (RoPE, Su et al. 2021) in the plane: half of the channels for each coordinate.

    Args:
        coordinates: (T, 2) integer coordinates of each position.
        head_dim: width of a head, a multiple of 4.
        base: wavelengths run from 2π to 2π × base positions.

    Returns:
        (T, 2, head_dim): for each position the cosines, and the sines with the sign that `rotate` needs.
    """
    pairs = head_dim // 4
    frequencies = base ** -(torch.arange(pairs) / pairs)
    return rotary_from_angles((coordinates[:, :, None] * frequencies).flatten(1))


def rotary_from_angles(angles: Tensor) -> Tensor:
    """Rotation angles (T, head_dim / 2) of the channel pairs of a head -> the table (T, 2, head_dim) for `rotate`."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + head_dim / 2) of x by their position's angles.

    Args:
        x: (B, T, …, head_dim).
        table: (T, 2, head_dim) from `rotary_table` or `rotary_from_angles`.

    Returns:
        As x.
    """
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
        n_head: number of heads.
        head_dim: width of a head; 0 is C / n_head.
        bias: whether the two linear layers have biases.
        qk_norm: whether queries and keys are normalised.
        attention_mask: which positions each may attend to; None for all up to itself.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        head_dim: int = 0,
        *,
        bias: bool = False,
        qk_norm: bool = True,
        attention_mask: AttentionMask | None = None,
    ) -> None:
        super().__init__()
        self.n_head = n_head
        self.head_dim = head_dim or n_embd // n_head
        self.attention_mask = attention_mask
        self.qkv = nn.Linear(n_embd, 3 * n_head * self.head_dim, bias=bias)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.out = nn.Linear(n_head * self.head_dim, n_embd, bias=bias)

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Attend from each position to itself and to earlier ones.

        Args:
            x: (B, T, C).
            table: (T, 2, head_dim) rotary table of these positions, or None for no rotation.
            cache: keys and values of earlier positions; the new ones are stored in it.
            layer: index of this layer in the cache.

        Returns:
            (B, T, C).
        """
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, self.head_dim)
        qk, values = qkv[:, :, :2], qkv[:, :, 2]
        if self.q_norm is not None and self.k_norm is not None:
            qk = rms_norm(qk, torch.stack([self.q_norm.weight, self.k_norm.weight])[:, None])
        if table is not None:
            qk, values = self.add_positions(qk, values, table)
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), values))
        if cache is not None:
            y = cache.attend(layer, q, k, v, self.attention_mask)
        else:
            y = attend_causally(q, k, v, self.attention_mask)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def add_positions(self, qk: Tensor, values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys qk (B, T, 2, n_head, head_dim); values (B, T, n_head, head_dim) stay as they are."""
        return rotate(qk, table), values


def attend_causally(q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask | None = None) -> Tensor:
    """Attention of each position to itself and to earlier ones, or to those of them that the mask allows.

    q, k, v and the result are (B, n_head, T, head_dim).
    """
    T = q.shape[2]
    if attention_mask is not None and q.device.type == "cuda" and q.requires_grad and q.shape[3] >= SMALLEST_HEAD:
        return attend_in_blocks(q, k, v, attention_mask)
    if attention_mask is not None:
        return attend(q, k, v, attention_mask.allowed[:T, :T])
    return attend(q, k, v, is_causal=True)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask) -> Tensor:
    """As `attend_causally` with a mask, by FlexAttention: blocks of positions that the mask leaves out cost nothing.

    Positions are laid out in the mask's own order, in which those that one attends to lie together. FlexAttention has
    no backward pass on a CPU.
    """
    order, places, block_mask = attention_mask.blocks(q.shape[2])
    q, k, v = (part.to(v.dtype).index_select(2, order) for part in (q, k, v))
    return flex_attention(q.device.type)(q, k, v, block_mask=block_mask).index_select(2, places)


@functools.cache
def flex_attention(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled for GPUs: without that it computes all scores."""
    from torch.nn.attention import flex_attention as module

    function: Any = module.flex_attention
    return torch.compile(function) if device == "cuda" else function


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Scaled dot-product attention, by whichever of two implementations is faster here.

    Args:
        q: (B, n_head, T, head_dim).
        k: (B, n_head, S, head_dim).
        v: the same shape as k.
        allowed: bool, broadcast to (B, n_head, T, S): True where a query may attend to a key; None for everywhere.
        is_causal: without `allowed`, and with T = S: each query attends to the keys up to its own position.

    Returns:
        (B, n_head, T, head_dim).
    """
    if q.device.type != "cpu" or not q.requires_grad:
        # Flash attention takes no mask, but skips what is not causal.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=is_causal)
    if is_causal:
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    # On a CPU the fused kernel's backward takes five times as long as these two matrix products.
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if allowed is not None:
        # An added constant needs no backward pass of its own; `masked_fill` on the scores would need one. The softmax
        # gives masked scores no gradient either way.
        scores = scores + scores.new_zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ v


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Divide x (…, C) by its root mean square over the last dimension, then multiply by weight (…, C)."""
    weight = weight.to(x.dtype)
    if x.device.type == "cuda" and weight.ndim == 1:
        return F.rms_norm(x, x.shape[-1:], weight, EPS)  # one kernel
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return F.rms_norm(x, x.shape[-1:], eps=EPS) * weight
    # Without gradients the lines above take three times as long on a CPU as these few operations.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(norm.square_().mul_(1 / x.shape[-1]).add_(EPS)).to(x.dtype)
    return x * scale * weight
