"""Transformers whose blocks run in compiled code on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.attention import RMSNorm
from dalle_mini_impl.model.blocks import Block
from dalle_mini_impl.model.decoder import Cache
from dalle_mini_impl.model.foreign.blocks import ForeignBlock, RotatedValuesAttention
from dalle_mini_impl.model.foreign.transformer import ForeignTransformer, leave_blocks
from dalle_mini_impl.model.transformer import Transformer, add_image_embed, embed_ids
from dalle_mini_impl.sampling.native.blocks import BlocksShape, LayerWeights, NativeBlocks
from dalle_mini_impl.sampling.native.cache import NativeCache
from dalle_mini_impl.sampling.native.linear import NativeLinear, WeightAndBias


class NativeDecoder:
    """A transformer whose blocks run in compiled code on a CPU. Meets the protocol `model.decoder.Decoder`.

    Args:
        transformer: its embeddings and last norm are shared with the decoder, the rest is copied.
        library: the compiled functions.
        int8: store matrices as 8-bit integers instead of in bf16.
        allowed: as in `pack`.
    """

    @torch.no_grad()
    def __init__(self, transformer: Transformer, library: Any, int8: bool, allowed: tuple[int, int]) -> None:
        blocks = [cast(Block, block) for block in transformer.blocks]
        foreign = transformer if isinstance(transformer, ForeignTransformer) else None
        reversible = foreign is not None and foreign.reversible
        divide_by_max = foreign is not None and foreign.divide_by_max
        # The compiled code can leave rows at length 1; then the last norm's weight is folded into the head.
        unit_output = isinstance(transformer.norm, RMSNorm) and not divide_by_max and not reversible
        shape = BlocksShape(
            transformer.n_head,
            transformer.head_dim,
            mlp=blocks[0].mlp.kind,
            qk_norm=blocks[0].attention.q_norm is not None,
            rotate_values=isinstance(blocks[0].attention, RotatedValuesAttention),
            reversible=reversible,
            sources=None if foreign is None else foreign.sources,
            unit_output=unit_output,
        )
        self.blocks = NativeBlocks(
            library,
            [layer_weights(block, transformer.table, transformer.max_length) for block in blocks],
            [block.attention.attention_mask for block in blocks],
            shape,
            int8,
        )
        self._embed, self._positions = transformer.embed, transformer.positions
        self._coordinates, self._image_prefix = transformer.coordinates, transformer.image_prefix
        self._reversible = reversible
        self._finish: Callable[[Tensor], Tensor] = nn.Identity()
        head, bias = transformer.head_rows()
        if unit_output:
            head = head * unit_weight(transformer.norm)
        else:
            self._finish = partial(_finish, transformer.norm, reversible, divide_by_max)
        self._head = WeightAndBias(head.detach(), None if bias is None else bias.detach())
        self._allowed = allowed
        self._allowed_head = NativeLinear(library, rows_of(self._head, allowed), int8)

    @property
    def device(self) -> torch.device:
        """The device of the weights: the CPU."""
        return self._embed.weight.device

    @torch.no_grad()
    def __call__(self, ids: Tensor, cache: Cache | None = None, image_embed: Tensor | None = None) -> Tensor:
        start = cache.length if cache is not None else 0
        end = start + ids.shape[1]
        x = embed_ids(ids, self._coordinates[start:end], self._embed, self._positions)
        if image_embed is not None:
            x = add_image_embed(x, image_embed, self._image_prefix)
        if self._reversible:
            x = torch.stack([x, x])
        x = self.blocks(x, cast("NativeCache | None", cache))
        if cache is not None:
            cache.length = end
        return self._finish(x)

    def logits(self, hidden: Tensor, allowed: tuple[int, int] | None = None) -> Tensor:
        """As `Decoder.logits`; fastest for the `allowed` that the decoder was made for."""
        if allowed == self._allowed:
            return self._allowed_head(hidden)
        return F.linear(hidden, *(self._head if allowed is None else rows_of(self._head, allowed)))

    def new_cache(self, batch: int, capacity: int | None = None) -> NativeCache:
        """As `Decoder.new_cache`."""
        return self.blocks.new_cache(batch, capacity)


def unit_weight(norm: Any) -> Tensor:
    """Weight (C,) of a norm for rows of length 1 instead of root mean square 1."""
    return norm.weight.float() * len(norm.weight) ** 0.5


def _finish(norm: nn.Module, reversible: bool, divide_by_max: bool, x: Tensor) -> Tensor:
    """What follows the last block."""
    return norm(leave_blocks(x, reversible, divide_by_max))


def rows_of(head: WeightAndBias, allowed: tuple[int, int]) -> WeightAndBias:
    """The rows `(first, end)` of an output head."""
    rows = slice(*allowed)
    return WeightAndBias(head.weight[rows], None if head.bias is None else head.bias[rows])


def layer_weights(block: Block, table: Tensor | None, length: int) -> LayerWeights:
    """The weights of a block; those of RMSNorms before a matrix are folded into it.

    Args:
        block: the block.
        table: rotary table of all positions; None for no rotation.
        length: number of positions.
    """
    attention, mlp = block.attention, block.mlp
    layers = {"qkv": attention.qkv, "out": attention.out, "up": mlp.up, "down": mlp.down}
    matrices = {name: WeightAndBias(layer.weight, layer.bias) for name, layer in layers.items()}
    norms = {}
    for name, norm, matrix in (
        ("attention_norm", block.attention_norm, "qkv"),
        ("mlp_norm", block.mlp_norm, "up"),
    ):
        if isinstance(norm, RMSNorm):
            matrices[matrix] = WeightAndBias(matrices[matrix].weight * unit_weight(norm), matrices[matrix].bias)
        else:
            norms[name] = WeightAndBias(unit_weight(norm), cast(Tensor, norm.bias))
    if isinstance(block, ForeignBlock) and block.sandwich:
        for name, norm in (("attention_post", block.attention_post), ("mlp_post", block.mlp_post)):
            norms[name] = WeightAndBias(unit_weight(norm), getattr(norm, "bias", None))
    return LayerWeights(matrices, norms, _rotary_weights(block, table, length))


def _rotary_weights(block: Block, table: Tensor | None, length: int) -> Tensor:
    """The rotary table times the weights of the norms of queries and keys, (T, 2 or 3, 2, head_dim)."""
    attention = block.attention
    size = attention.head_dim
    weights = torch.ones(3 if isinstance(attention, RotatedValuesAttention) else 2, size)
    if attention.q_norm is not None and attention.k_norm is not None:
        weights[:2] = torch.stack([unit_weight(attention.q_norm), unit_weight(attention.k_norm)])
    weights[0] *= size**-0.5
    cos, sin = torch.ones(length, 1, 1), torch.zeros(length, 1, 1)
    if table is not None:
        cos, sin = table[:, :, None].float().unbind(1)
    # A sine is multiplied with the other channel of its pair, and so needs the weight of that channel.
    return torch.stack([cos * weights, sin * weights.roll(size // 2, 1)], 2)
