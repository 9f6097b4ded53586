"""The transformer of imported models: `Transformer` with the blocks of `foreign.blocks` and what surrounds them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.model.attention import rotary_from_angles
from dalle_mini_impl.model.blocks import make_norm
from dalle_mini_impl.model.foreign.blocks import ForeignBlock, ShiftCache
from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.model.transformer import POSITIONS, Transformer, check_shape
from dalle_mini_impl.util.errors import UserError

FOREIGN_POSITIONS = {"rope": 4, "table": 2, **POSITIONS}
"""As `transformer.POSITIONS`."""


class ForeignTransformer(Transformer):
    """A transformer with what only imported models need.

    Args:
        vocab_size: V.
        coordinates: (T, 2) integer coordinates of each position of the longest stream.
        n_layer: number of blocks.
        n_head: heads per block.
        n_embd: C.
        position: as `Transformer`, or `table`: rotary, by a table among the weights, which rotates nothing until
            weights are loaded.
        head_dim: width of a head; 0 is C / n_head.
        norm: kind of all norms, `rms` or `layer`.
        last_norms: number of norms after the last block.
        reversible: the blocks have two residual streams; both begin as the embedded ids, and their mean leaves.
        divide_by_max: divide what leaves the last block by its largest channel (Ding et al. 2021, CogView).
        sources: (2, T) positions that shifted channels come from (see `blocks.shift_tokens`); None for no token shift.
        block_options: further arguments of `ForeignBlock`.
        **options: as `Transformer`.

    Raises:
        UserError: as `Transformer`, or last_norms is below 1, or n_embd has no quarters to shift.
    """

    sources: Tensor | None

    def __init__(
        self,
        vocab_size: int,
        coordinates: Tensor,
        n_layer: int,
        n_head: int,
        n_embd: int,
        position: str = "rope",
        *,
        head_dim: int = 0,
        norm: str = "rms",
        last_norms: int = 1,
        reversible: bool = False,
        divide_by_max: bool = False,
        sources: Tensor | None = None,
        block_options: dict[str, Any],
        **options: Any,
    ) -> None:
        check_shape(n_embd, n_head, head_dim, position, FOREIGN_POSITIONS)
        if last_norms < 1:
            raise UserError(f"expected last_norms of 1 or more, got {last_norms}; change it")
        if sources is not None and n_embd % 4:
            raise UserError(f"expected n_embd to be a multiple of 4 for block.token_shift, got {n_embd}; change one")
        make_block: Callable[[int, int, int, AttentionMask | None], nn.Module] = partial(
            ForeignBlock, norm=norm, reversible=reversible, **block_options
        )
        super().__init__(
            vocab_size,
            coordinates,
            n_layer,
            n_head,
            n_embd,
            None if position == "table" else position,
            head_dim=head_dim,
            make_block=make_block,
            make_norm=partial(_last_norm, norm, last_norms),
            **options,
        )
        if position == "table":
            angles = torch.zeros(self.max_length, self.head_dim // 2)
            self.register_buffer("table", rotary_from_angles(angles), persistent=True)
        self.register_buffer("sources", sources, persistent=False)
        self.reversible = reversible
        self.divide_by_max = divide_by_max

    def run_blocks(self, x: Tensor, span: slice | Tensor, cache: Any) -> Tensor:
        table = self.table[span] if self.table is not None else None
        sources = self.sources[:, span] if self.sources is not None else None
        if self.reversible:
            x = torch.stack([x, x])
        for layer, block in enumerate(self.blocks):
            x = self.run_block(block, x, table, cache, layer, sources)
        return leave_blocks(x, self.reversible, self.divide_by_max)

    def new_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        if self.sources is None:
            return super().new_cache(batch, capacity)
        shape = (batch, self.n_head, capacity or self.max_length, self.head_dim)
        return ShiftCache(self.n_layer, shape, self.device, self.embed.weight.dtype, self.n_embd // 2)


def leave_blocks(x: Tensor, reversible: bool, divide_by_max: bool) -> Tensor:
    """What happens after the last block and before the last norm.

    Args:
        x: (B, T, C), or (2, B, T, C) if `reversible`.
        reversible: whether to average two residual streams.
        divide_by_max: whether to divide by the largest channel.

    Returns:
        (B, T, C).
    """
    if reversible:
        x = x.mean(0)
    if divide_by_max:
        x = x / x.amax(-1, keepdim=True).detach()
    return x


def _last_norm(kind: str, count: int, width: int) -> nn.Module:
    norms = [make_norm(kind, width) for _ in range(count)]
    return nn.Sequential(*norms) if count > 1 else norms[0]
