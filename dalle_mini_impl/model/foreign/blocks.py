"""Blocks of imported models: what `model.blocks` and `model.attention` leave out, for weights of other projects.

rotated values      values are rotated to their positions like queries and keys (DALLE-pytorch)
sandwich norms      a norm after each layer as well, before its output is added (Ding et al. 2021, CogView)
reversible pairs    two residual streams; attention adds to the first what it computes from the second, the
                    feed-forward layer to the second what it computes from the first (Gomez et al. 2017)
token shift         a quarter of the channels comes from the position above, a quarter from the one on the left
                    (DALLE-pytorch)
"""

from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.model.attention import Attention, rotate
from dalle_mini_impl.model.blocks import Block, make_norm
from dalle_mini_impl.model.kv_cache import KVCache, copy_positions
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.model.stream import Stream


class RotatedValuesAttention(Attention):
    """Attention that rotates values to their positions as it does queries and keys."""

    def add_positions(self, qk: Tensor, values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(qk, table), rotate(values, table)


class ForeignBlock(Block):
    """A block with any of the parts that the module lists.

    Args:
        n_embd: C.
        n_head: number of heads.
        head_dim: width of a head; 0 is C / n_head.
        attention_mask: which positions each may attend to; None for all up to itself.
        norm: `rms` or `layer`.
        rotate_values: rotate values to their positions.
        sandwich: norms after attention and feed-forward layer, too.
        reversible: two residual streams.
        **options: as `Block`.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        head_dim: int = 0,
        attention_mask: AttentionMask | None = None,
        *,
        norm: str = "rms",
        rotate_values: bool = False,
        sandwich: bool = False,
        reversible: bool = False,
        **options: Any,
    ) -> None:
        attention_type = RotatedValuesAttention if rotate_values else Attention
        super().__init__(n_embd, n_head, head_dim, attention_mask, norm=norm, attention_type=attention_type, **options)
        self.reversible = reversible
        self.sandwich = sandwich
        if sandwich:
            self.attention_post = make_norm(norm, n_embd)
            self.mlp_post = make_norm(norm, n_embd)

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        cache: KVCache | None = None,
        layer: int = 0,
        sources: Tensor | None = None,
    ) -> Tensor:
        """Run the next positions.

        Args:
            x: (B, T, C), or of a reversible block both residual streams, (2, B, T, C).
            table: (T, 2, head_dim) rotary table of these positions, or None for no rotation.
            cache: earlier positions; the new ones are stored in it. With token shift a `ShiftCache`.
            layer: index of this block in the cache.
            sources: (2, T) positions that shifted channels come from (see `shift_tokens`), or None for no token shift.

        Returns:
            As x.
        """
        if self.reversible:
            first, second = x.unbind()
            first = first + self._attend(second, table, cache, layer, sources)
            return torch.stack([first, second + self._feed_forward(first, cache, layer, sources)])
        x = x + self._attend(x, table, cache, layer, sources)
        return x + self._feed_forward(x, cache, layer, sources)

    def _attend(
        self, x: Tensor, table: Tensor | None, cache: KVCache | None, layer: int, sources: Tensor | None
    ) -> Tensor:
        z = self.attention_norm(x)
        if sources is not None:
            z = shift_tokens(z, sources, cache, 2 * layer)
        z = self.attention(z, table, cache, layer)
        return self.attention_post(z) if self.sandwich else z

    def _feed_forward(self, x: Tensor, cache: KVCache | None, layer: int, sources: Tensor | None) -> Tensor:
        z = self.mlp_norm(x)
        if sources is not None:
            z = shift_tokens(z, sources, cache, 2 * layer + 1)
        z = self.mlp(z)
        return self.mlp_post(z) if self.sandwich else z


class ShiftCache(KVCache):
    """A `KVCache` that also stores the channels that token shift takes from earlier positions.

    Args:
        n_layer: blocks of the model.
        shape: as `KVCache`.
        device: as `KVCache`.
        dtype: as `KVCache`.
        width: number of channels stored per position, once before attention and once before the feed-forward layer of
            each block.
    """

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, width: int
    ) -> None:
        super().__init__(n_layer, shape, device, dtype)
        rows, _, capacity, _ = shape
        self.channels = torch.zeros(2 * n_layer, rows, capacity, width, device=device, dtype=dtype)

    def store_channels(self, slot: int, z: Tensor) -> Tensor:
        """Store channels (B, T, c) of the next positions, and return those of all positions so far.

        Args:
            slot: 2 × layer for attention, 2 × layer + 1 for the feed-forward layer.
            z: the channels.
        """
        end = self.length + z.shape[1]
        self.channels[slot, :, self.length : end] = z
        return self.channels[slot, :, :end]

    def branch(self, rows: Tensor, capacity: int) -> "ShiftCache":
        """As `Cache.branch`; every new row gets a copy of its prompt."""
        n_layer, _, n_head, _, head_dim = self.keys.shape
        shape = (len(rows), n_head, capacity, head_dim)
        cache = ShiftCache(n_layer, shape, self.keys.device, self.keys.dtype, self.channels.shape[3])
        copy_positions(self.keys, cache.keys, self.length, rows)
        copy_positions(self.values, cache.values, self.length, rows)
        copy_positions(self.channels, cache.channels, self.length, rows)
        cache.length = self.length
        return cache

    def branch_bytes(self, count: int, capacity: int) -> int:
        """As `Cache.branch_bytes`."""
        slots, _, _, width = self.channels.shape
        channels = slots * count * capacity * width
        return super().branch_bytes(count, capacity) + channels * self.channels.element_size()

    def keep(self, rows: Tensor) -> None:
        """As `Cache.keep`."""
        super().keep(rows)
        self.channels = self.channels[:, rows]


def shift_tokens(z: Tensor, sources: Tensor, cache: KVCache | None, slot: int) -> Tensor:
    """Replace the first two quarters of the channels by those of other positions.

    Args:
        z: (B, T, C) of the next positions.
        sources: (2, T) positions that the first and the second quarter come from; -1 for zeros.
        cache: the `ShiftCache` with the earlier positions; these are stored in it. None if there are none.
        slot: as `ShiftCache.store_channels`.

    Returns:
        (B, T, C).
    """
    half = z.shape[2] // 2
    channels = cache.store_channels(slot, z[..., :half]) if isinstance(cache, ShiftCache) else z[..., :half]
    first, second = (channels[:, source.clamp_min(0)] * (source >= 0)[:, None] for source in sources)
    return torch.cat([first[..., : half // 2], second[..., half // 2 :], z[..., half:]], -1)


def shift_sources(stream: Stream) -> Tensor:
    """The positions that token shift takes channels from, (2, T): first the one above, then the one on the left.

    -1 where there is none in the picture; at text positions both are the position before.
    """
    h, w = stream.config.grid
    text = torch.arange(-1, stream.prefix_length - 1)
    cells = torch.arange(h * w).view(h, w) + stream.prefix_length
    above, left = cells - w, cells - 1
    above[0], left[:, 0] = -1, -1
    return torch.stack([torch.cat([text, image.flatten()]) for image in (above, left)])
