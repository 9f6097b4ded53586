"""A transformer's blocks as `step.c` wants them."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.sampling.native.cache import CacheShape, NativeCache
from dalle_mini_impl.sampling.native.library import THEN, Blocks, Layer, Norm
from dalle_mini_impl.sampling.native.linear import NativeMatrix, WeightAndBias, in_tiles
from dalle_mini_impl.sampling.native.masks import LANES, NativeMasks
from dalle_mini_impl.util.errors import UserError

LARGEST_HEAD = 256


class LayerWeights(NamedTuple):
    """What `NativeBlocks` asks for of each block."""

    matrices: Mapping[str, WeightAndBias]
    """`qkv`, `out`, `up` and `down`, as the layers of these names have them."""
    norms: Mapping[str, WeightAndBias]
    """`attention_norm` and `mlp_norm`, unless they are part of the matrix behind them; `attention_post` and `mlp_post`,
    if there are any. Weights are for vectors of length 1; the mean is taken off where there is a bias."""
    turn: Tensor
    """(T, 2 or 3, 2, head_dim): of each position, for queries, keys and maybe values, cosines and sines."""


class BlocksShape(NamedTuple):
    """What all blocks have in common."""

    n_head: int
    head_dim: int
    config: BlockConfig
    sources: Tensor | None
    """(2, T) where shifted channels come from; see `blocks.shifted`."""
    finish: bool
    """Whether rows are left at length 1."""


class NativeBlocks(nn.Module):
    """All blocks of a transformer as one.

    Args:
        library: the compiled functions.
        layers: the blocks' weights.
        attention_masks: what each of them may look at; None for all before.
        shape: what they have in common.
        narrow: keep the matrices as 8-bit integers.
    """

    def __init__(
        self,
        library: Any,
        layers: Sequence[LayerWeights],
        attention_masks: Sequence[AttentionMask | None],
        shape: BlocksShape,
        narrow: bool = False,
    ) -> None:
        super().__init__()
        self._library, self._attention_masks, config = library, NativeMasks(attention_masks), shape.config
        self._kept: list[Any] = []  # what the tables below point to
        self._table = (Layer * len(layers))()
        hidden = [self._fill(place, layer, narrow) for place, layer in zip(self._table, layers, strict=True)]
        width, sources = layers[0].matrices["qkv"].weight.shape[1], shape.sources
        shifted = 0 if sources is None else width // 2
        self._shape = CacheShape(len(layers), shape.n_head, shape.head_dim, shifted, len(layers[0].turn))
        self._blocks = Blocks(
            ctypes.addressof(self._table),
            None if sources is None else self._keep(sources.T.int()),
            len(layers),
            shape.n_head,
            shape.head_dim,
            width,
            hidden[0],
            THEN[config.mlp],
            config.qk_norm,
            config.rotate_values,
            config.reversible,
            shape.finish,
        )

    def forward(self, x: Tensor, _table: Any, cache: NativeCache | None, _layer: int, _sources: Any = None) -> Tensor:
        """As `Block` has it; (B, T, C) of any dtype -> fp32. What begins with _ is not needed.

        Raises:
            UserError: the cache has another number of rows, or no room for T more positions.
        """
        B, T, _ = x.shape[-3:]
        cache = cache or self.new_cache(B, T)
        if cache.parts.rows != B:
            raise UserError(f"{B} rows were given with a cache of {cache.parts.rows}; make a cache of as many")
        if cache.room < T:
            raise UserError(
                f"{T} positions were given, and there is room for {cache.room} more; make a longer cache or stream"
            )
        x = x.to(torch.float32, copy=True).contiguous()
        threads = torch.get_num_threads()
        memory = torch.empty(self._library.room(self._blocks, cache.parts, T, threads), dtype=torch.uint8)
        self._library.step(self._blocks, cache.parts, x.data_ptr(), T, memory.data_ptr(), threads)
        return x

    def new_cache(self, batch: int, capacity: int | None = None) -> NativeCache:
        """As `Transformer` has it."""
        return NativeCache(self._shape, batch, capacity or self._shape.length, self._attention_masks)

    def _fill(self, place: Layer, layer: LayerWeights, narrow: bool) -> int:
        """Put a block's weights where the compiled code finds them; gives the width inside its feed-forward layer."""
        up, down = in_tiles(layer.matrices["up"], layer.matrices["down"], self._library.lanes())
        for name, pair in {**layer.matrices, "up": up, "down": down}.items():
            matrix = NativeMatrix(self._library, pair, narrow)
            setattr(place, name, matrix.parts)
            self._kept.append(matrix)
        for name, (weight, bias) in layer.norms.items():
            setattr(place, name, Norm(self._keep(weight.float()), None if bias is None else self._keep(bias.float())))
        place.turn = self._keep(layer.turn.float())
        return down.weight.shape[1]

    def _keep(self, values: Tensor) -> int:
        """Where numbers are, which stay there as long as the blocks."""
        self._kept.append(values.detach().contiguous())
        return self._kept[-1].data_ptr()


def fits(n_embd: int, n_head: int, head_dim: int) -> bool:
    """Whether the compiled code can compute blocks of this width."""
    whole = n_embd % (2 * LANES) == 0 and n_head * head_dim % (2 * LANES) == 0
    return whole and head_dim % LANES == 0 and head_dim <= LARGEST_HEAD
