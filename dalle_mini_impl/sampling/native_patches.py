"""A transformer over patches of image ids whose blocks run in compiled code on a CPU."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.attention import RMSNorm
from dalle_mini_impl.model.blocks import Block
from dalle_mini_impl.model.decoder import Cache
from dalle_mini_impl.model.patches import PatchCache, PatchTransformer, run_patches
from dalle_mini_impl.model.transformer import Transformer, add_image_embed, add_positions
from dalle_mini_impl.sampling.native.blocks import BlocksShape, NativeBlocks
from dalle_mini_impl.sampling.native.cache import NativeCache
from dalle_mini_impl.sampling.native.linear import NativeLinear, WeightAndBias
from dalle_mini_impl.sampling.native_decoder import layer_weights, rows_of, unit_weight


class NativePatchDecoder:
    """Backbone and depth transformer in compiled code. Meets the protocol `model.decoder.Decoder`.

    Args:
        transformer: its embeddings are shared with the decoder, the rest is copied.
        library: the compiled functions.
        int8: store matrices as 8-bit integers instead of in bf16.
        allowed: `(first, end)` of the ids that will be sampled; the output head is packed for these.
    """

    @torch.no_grad()
    def __init__(self, transformer: PatchTransformer, library: Any, int8: bool, allowed: tuple[int, int]) -> None:
        depth = transformer.depth
        self.layout = transformer.layout
        self._embed, self._positions = transformer.embed, transformer.positions
        self._coordinates, self._image_prefix = transformer.coordinates, transformer.image_prefix
        self._depth = depth
        self._backbone = _native_blocks(
            library, transformer.blocks, transformer, transformer.table, transformer.max_length, transformer.norm, int8
        )
        self._depth_blocks = _native_blocks(
            library, depth.blocks, transformer, None, self.layout.patch_length, depth.norm, int8
        )
        self._finish, self._finish_depth = _finish(transformer.norm), _finish(depth.norm)
        self._merge = NativeLinear(library, WeightAndBias(transformer.merge.weight, None), int8)
        self._enter = NativeLinear(library, WeightAndBias(depth.enter.weight, None), int8)
        head, bias = transformer.head_rows()
        self._head = WeightAndBias(head.detach(), None if bias is None else bias.detach())
        self._allowed = allowed
        self._allowed_head = NativeLinear(library, rows_of(self._head, allowed), int8)

    @property
    def device(self) -> torch.device:
        """The device of the weights: the CPU."""
        return self._embed.weight.device

    @torch.no_grad()
    def __call__(self, ids: Tensor, cache: Cache | None = None, image_embed: Tensor | None = None) -> Tensor:
        assert cache is None or isinstance(cache, PatchCache)
        return run_patches(
            ids,
            cache,
            self.layout,
            embed=self._embed,
            merge=lambda patches: self._merge(patches.flatten(-2)),
            backbone=lambda x, first: self._run_backbone(x, first, cache, image_embed),
            depth=self._run_depth,
        )

    def logits(self, hidden: Tensor, allowed: tuple[int, int] | None = None) -> Tensor:
        """As `Decoder.logits`; fastest for the `allowed` that the decoder was made for."""
        if allowed == self._allowed:
            return self._allowed_head(hidden)
        return F.linear(hidden, *(self._head if allowed is None else rows_of(self._head, allowed)))

    def new_cache(self, batch: int, capacity: int | None = None) -> PatchCache:
        """As `Decoder.new_cache`."""
        positions = None if capacity is None else self.layout.positions(capacity)
        return PatchCache(self._backbone.new_cache(batch, positions), self.layout)

    def _run_backbone(self, x: Tensor, first: int, cache: PatchCache | None, image_embed: Tensor | None) -> Tensor:
        end = first + x.shape[1]
        keys = cast(NativeCache, cache.backbone) if cache is not None else None
        x = add_positions(x, self._coordinates[first:end], self._positions)
        if image_embed is not None:
            x = add_image_embed(x, image_embed, self._image_prefix)
        x = self._backbone(x, keys)
        if keys is not None:
            keys.length = end
        return self._finish(x)

    def _run_depth(self, hidden: Tensor, ids: Tensor, cache: PatchCache | None) -> Tensor:
        """As `run_patches` needs it; the keys of the patch stay in the cache, so that each id is run once."""
        count = ids.shape[1]
        keys = cache.depth if cache is not None else None
        if keys is not None and count and keys.length == count:
            x = self._depth.embed(hidden, self._embed(ids[:, -1:]), first=count)
        else:
            keys = self._depth_blocks.new_cache(len(hidden)) if cache is not None else None
            x = self._depth.embed(self._enter(hidden), self._embed(ids))
        x = self._depth_blocks(x, keys)
        if cache is not None and keys is not None:
            keys.length = count + 1
            cache.depth = keys
            x = x[:, -1:]
        return self._finish_depth(x)


def _native_blocks(
    library: Any,
    blocks: nn.ModuleList,
    transformer: Transformer,
    table: Tensor | None,
    length: int,
    norm: nn.Module,
    int8: bool,
) -> NativeBlocks:
    """Blocks of a transformer with `length` positions and a rotary table of these, if they are rotated."""
    kinds = [cast(Block, block) for block in blocks]
    shape = BlocksShape(
        transformer.n_head,
        transformer.head_dim,
        mlp=kinds[0].mlp.kind,
        qk_norm=kinds[0].attention.q_norm is not None,
        unit_output=isinstance(norm, RMSNorm),
    )
    layers = [layer_weights(block, table, length) for block in kinds]
    return NativeBlocks(library, layers, [None] * len(kinds), shape, int8)


def _finish(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What follows blocks that leave rows at length 1 where the norm is an RMSNorm."""
    if not isinstance(norm, RMSNorm):
        return norm
    weight = unit_weight(norm)
    return lambda x: x * weight
