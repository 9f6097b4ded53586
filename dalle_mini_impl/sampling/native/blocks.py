"""The blocks of a transformer in the layout of `step.c`."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.sampling.native.cache import CacheShape, NativeCache
from dalle_mini_impl.sampling.native.library import EPILOGUES, MAX_LANES, BlocksStruct, LayerStruct, NormStruct
from dalle_mini_impl.sampling.native.linear import NativeMatrix, WeightAndBias, interleave_gates
from dalle_mini_impl.sampling.native.masks import NativeMasks
from dalle_mini_impl.util.errors import UserError

LARGEST_HEAD = 256
"""As in `blocks.h`."""


class LayerWeights(NamedTuple):
    """The weights of a block for `NativeBlocks`."""

    matrices: Mapping[str, WeightAndBias]
    """`qkv`, `out`, `up` and `down`, as in `model.blocks`."""
    norms: Mapping[str, WeightAndBias]
    """`attention_norm` and `mlp_norm`, unless they are folded into the matrix after them; `attention_post` and
    `mlp_post` of sandwich norms. Weights are for rows of length 1; where there is a bias the mean is subtracted first.
    """
    rotary: Tensor
    """(T, 2 or 3, 2, head_dim): of each position, for queries, keys and maybe values, cosines and sines."""


class BlocksShape(NamedTuple):
    """What all blocks have in common."""

    n_head: int
    head_dim: int
    mlp: str
    """Kind of the feed-forward layer, as `model.blocks.MLP.kind`."""
    qk_norm: bool
    unit_output: bool
    """Whether rows of the result are scaled to length 1."""
    rotate_values: bool = False
    reversible: bool = False
    sources: Tensor | None = None
    """(2, T) positions that shifted channels come from, as `foreign.blocks.shift_tokens`; None for no token shift."""


class NativeBlocks:
    """All blocks of a transformer as one compiled function.

    Args:
        library: the compiled functions.
        layers: the blocks' weights.
        attention_masks: the mask of each block; None for full attention.
        shape: what they have in common.
        int8: store the matrices as 8-bit integers instead of in bf16.
    """

    def __init__(
        self,
        library: Any,
        layers: Sequence[LayerWeights],
        attention_masks: Sequence[AttentionMask | None],
        shape: BlocksShape,
        int8: bool = False,
    ) -> None:
        self._library = library
        self._attention_masks = NativeMasks(attention_masks)
        self._referenced: list[Any] = []  # memory that the structures point to
        self._layers = (LayerStruct * len(layers))()
        hidden = [self._fill(struct, layer, int8) for struct, layer in zip(self._layers, layers, strict=True)]
        width = layers[0].matrices["qkv"].weight.shape[1]
        shifted = 0 if shape.sources is None else width // 2
        self._cache_shape = CacheShape(len(layers), shape.n_head, shape.head_dim, shifted, len(layers[0].rotary))
        self._struct = BlocksStruct(
            layers=ctypes.addressof(self._layers),
            sources=None if shape.sources is None else self._address(shape.sources.T.int()),
            count=len(layers),
            heads=shape.n_head,
            size=shape.head_dim,
            width=width,
            hidden=hidden[0],
            activation=EPILOGUES[shape.mlp],
            qk_norm=shape.qk_norm,
            rotate_values=shape.rotate_values,
            reversible=shape.reversible,
            unit_output=shape.unit_output,
        )

    def __call__(self, x: Tensor, cache: NativeCache | None = None) -> Tensor:
        """Run the next positions.

        Args:
            x: (B, T, C) of any dtype, or of reversible blocks both residual streams, (2, B, T, C).
            cache: earlier positions; keys and values of these are stored in it, its length is left to the caller.

        Returns:
            As x, in fp32.

        Raises:
            UserError: the cache has another number of rows, or no room for T more positions.
            ValueError: x has another shape, or the cache is of another model.
        """
        B, T, _ = x.shape[-3:]
        streams = (2,) if self._struct.reversible else ()
        if x.shape != (*streams, B, T, self._struct.width):
            raise ValueError(
                f"expected x of shape {(*streams, B, T, self._struct.width)}, got {tuple(x.shape)}; "
                "embed the ids with this model's weights"
            )
        cache = cache or self.new_cache(B, T)
        if cache.shape != self._cache_shape:
            raise ValueError(
                f"expected a cache of {self._cache_shape}, got one of {cache.shape}; use this model's new_cache"
            )
        if cache.struct.rows != B:
            raise UserError(f"expected {cache.struct.rows} rows, as the cache has, got {B}; make a cache of {B} rows")
        if cache.free < T:
            raise UserError(
                f"expected at most {cache.free} more positions in this cache, got {T}; make a longer cache or stream"
            )
        x = x.to(torch.float32, copy=True).contiguous()
        threads = torch.get_num_threads()
        size = self._library.workspace_size(self._struct, cache.struct, T, threads)
        workspace = torch.empty(size, dtype=torch.uint8)
        self._library.step(self._struct, cache.struct, x.data_ptr(), T, workspace.data_ptr(), threads)
        return x

    def new_cache(self, batch: int, capacity: int | None = None) -> NativeCache:
        """As `Decoder.new_cache`."""
        return NativeCache(self._cache_shape, batch, capacity or self._cache_shape.length, self._attention_masks)

    def _fill(self, struct: LayerStruct, layer: LayerWeights, int8: bool) -> int:
        """Fill the structure of one block, and return the padded hidden width of its feed-forward layer."""
        up, down = interleave_gates(layer.matrices["up"], layer.matrices["down"], self._library.lanes())
        for name, pair in {**layer.matrices, "up": up, "down": down}.items():
            matrix = NativeMatrix(self._library, pair, int8)
            setattr(struct, name, matrix.struct)
            self._referenced.append(matrix)
        for name, (weight, bias) in layer.norms.items():
            bias_address = None if bias is None else self._address(bias.float())
            setattr(struct, name, NormStruct(self._address(weight.float()), bias_address))
        struct.rotary = self._address(layer.rotary.float())
        return down.weight.shape[1]

    def _address(self, values: Tensor) -> int:
        """Address of a contiguous copy of a tensor that lives as long as the blocks."""
        self._referenced.append(values.detach().contiguous())
        return self._referenced[-1].data_ptr()


def fits(n_embd: int, n_head: int, head_dim: int) -> bool:
    """Whether the compiled code supports blocks of this width: whole vectors, and heads of at most `LARGEST_HEAD`."""
    whole_vectors = n_embd % (2 * MAX_LANES) == 0 and n_head * head_dim % (2 * MAX_LANES) == 0
    return whole_vectors and head_dim % MAX_LANES == 0 and head_dim <= LARGEST_HEAD
