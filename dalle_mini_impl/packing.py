"""A transformer made ready for decoding: in the precision and the layout that its device is fastest with.

On a CPU with a C compiler this is the compiled code of `native`, elsewhere PyTorch's own operations. A packed
transformer can no longer be trained or saved.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dalle_mini_impl.blocks import Block
from dalle_mini_impl.config import BlockConfig
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.native.blocks import LayerWeights, NativeBlocks, NativeLinear, fits
from dalle_mini_impl.native.library import load
from dalle_mini_impl.transformer import Transformer

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def choose_precision(precision: str, transformer: Transformer) -> str:
    """`auto` -> the fastest precision whose pictures are as good: bf16 but where fp32 is all there is.

    Args:
        precision: one of `PRECISIONS`.
        transformer: on the device it will run on.

    Raises:
        UserError: there is no such precision, or not for this device or this transformer.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; expected {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return precision
    device = transformer.embed.weight.device.type
    reason = _missing(transformer) if device == "cpu" else ""
    if precision == "auto":
        return "bf16" if device == "cuda" or (device == "cpu" and not reason) else "fp32"
    if precision == "int8" and device != "cpu":
        raise UserError(f"precision int8 was given with device {device}; it is for cpu")
    if reason:
        raise UserError(f"precision {precision} was given, but {reason}; use fp32")
    return precision


def _missing(transformer: Transformer) -> str:
    """What keeps this transformer from running in compiled code; empty if nothing does."""
    if transformer.config != BlockConfig() or any(cast(Block, block).attention.sight for block in transformer.blocks):
        return "compiled code does not know its blocks"
    if not fits(transformer.n_embd, transformer.n_head):
        return f"compiled code does not know n_embd {transformer.n_embd} with n_head {transformer.n_head}"
    return "" if load() is not None else "there is no C compiler with OpenMP to make it for this CPU"


@torch.no_grad()
def pack(transformer: Transformer, precision: str, ids: tuple[int, int]) -> Transformer:
    """Make a transformer ready for decoding, in place.

    Args:
        transformer: on its device; afterwards only good for computing.
        precision: as `choose_precision` has it: `fp32`, `bf16`, or `int8` (weights alone, CPU).
        ids: `(first, end)` of the ids that will be drawn, whose part of the head is packed.

    Returns:
        The same transformer.
    """
    transformer.eval().requires_grad_(False)
    if precision == "fp32":
        return transformer
    if transformer.embed.weight.device.type != "cpu":
        return transformer.bfloat16()
    library: Any = load()
    layers = [_layer(cast(Block, block), transformer) for block in transformer.blocks]
    blocks = NativeBlocks(library, layers, transformer.n_head, narrow=precision == "int8")
    transformer.head.weight.mul_(gain(transformer.norm))
    head = transformer.head.weight[ids[0] : ids[1]]
    transformer.heads[ids] = NativeLinear(library, head, narrow=precision == "int8")
    # The blocks normalise what they return.
    transformer.blocks, transformer.norm = nn.ModuleList([blocks]), nn.Identity()
    transformer.new_cache = blocks.new_cache  # type: ignore[method-assign]
    return transformer


def _layer(block: Block, transformer: Transformer) -> LayerWeights:
    """A block's weights for vectors of length 1: the norms' weights are part of the matrices behind them."""
    attention, mlp = block.attention, block.mlp
    gate, up = (part * gain(block.mlp_norm) for part in mlp.up.weight.chunk(2))
    qkv = attention.qkv.weight * gain(block.attention_norm)
    return LayerWeights(qkv, attention.out.weight, gate, up, mlp.down.weight, _turn(block, transformer))


def _turn(block: Block, transformer: Transformer) -> Tensor:
    """The rotary table with the weights of the norms of queries and keys, (T, 2, 2, head_dim)."""
    gains = torch.stack([gain(block.attention.q_norm), gain(block.attention.k_norm)])  # (2, head_dim)
    gains[0] *= gains.shape[1] ** -0.5
    cos, sin = torch.ones(transformer.max_length, 1, 1), torch.zeros(transformer.max_length, 1, 1)
    if transformer.table is not None:
        cos, sin = transformer.table[:, :, None].float().unbind(1)
    # A sine meets the other half of its pair, and so that one's weight.
    return torch.stack([cos * gains, sin * gains.roll(gains.shape[1] // 2, 1)], 2)


def gain(norm: Any) -> Tensor:
    """What a vector of length 1 is multiplied with to be what the norm makes of it, (C,)."""
    return norm.weight.float() * len(norm.weight) ** 0.5
