"""A transformer made ready for decoding: in the precision and the layout that its device is fastest with.

On a CPU with a C compiler this is the compiled code of `native`, elsewhere PyTorch's own operations. A packed
transformer can no longer be trained or saved.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dalle_mini_impl.config.sampling import PRECISIONS
from dalle_mini_impl.model.attention import RMSNorm
from dalle_mini_impl.model.blocks import Block
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.native.blocks import BlocksShape, LayerWeights, NativeBlocks, fits
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.native.linear import NativeLinear, WeightAndBias
from dalle_mini_impl.util.errors import UserError


def choose_precision(precision: str, transformer: Transformer) -> str:
    """`auto` -> the fastest precision whose pictures are as good: bf16 but where fp32 is all there is.

    Args:
        precision: one of `config.sampling.PRECISIONS`.
        transformer: on the device it will run on.

    Raises:
        UserError: there is no such precision, or not for this device or this transformer.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; expected {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return precision
    device = transformer.device.type
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
    width, heads, size = transformer.n_embd, transformer.n_head, transformer.head_dim
    if not fits(width, heads, size):
        return f"compiled code does not know n_embd {width} with n_head {heads} of {size} channels each"
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
    if transformer.device.type != "cpu":
        return transformer.bfloat16()
    library: Any = load()
    found = [cast(Block, block) for block in transformer.blocks]
    # Then the norm behind the blocks can be folded into the head as well.
    finish = isinstance(transformer.norm, RMSNorm) and not (transformer.divide_by_max or transformer.config.reversible)
    shape = BlocksShape(transformer.n_head, transformer.head_dim, transformer.config, transformer.sources, finish)
    layers, attention_masks = (
        [_layer(block, transformer) for block in found],
        [block.attention.attention_mask for block in found],
    )
    blocks = NativeBlocks(library, layers, attention_masks, shape, narrow=precision == "int8")
    if finish:
        transformer.head.weight.mul_(gain(transformer.norm))
        transformer.norm = nn.Identity()
    weight, bias = transformer.head.weight[slice(*ids)], transformer.head.bias
    head = WeightAndBias(weight, None if bias is None else bias[slice(*ids)])
    transformer.heads[ids] = NativeLinear(library, head, narrow=precision == "int8")
    transformer.blocks = nn.ModuleList([blocks])
    transformer.new_cache = blocks.new_cache  # type: ignore[method-assign]
    return transformer


def _layer(block: Block, transformer: Transformer) -> LayerWeights:
    """A block's weights; those of an RMSNorm become part of the matrix behind it."""
    attention, mlp = block.attention, block.mlp
    layers = {"qkv": attention.qkv, "out": attention.out, "up": mlp.up, "down": mlp.down}
    matrices, norms = {name: WeightAndBias(layer.weight, layer.bias) for name, layer in layers.items()}, {}
    for name, behind in (("attention_norm", "qkv"), ("mlp_norm", "up")):
        norm = getattr(block, name)
        if isinstance(norm, RMSNorm):
            matrices[behind] = WeightAndBias(matrices[behind].weight * gain(norm), matrices[behind].bias)
        else:
            norms[name] = WeightAndBias(gain(norm), norm.bias)
    if block.sandwich:
        for name in ("attention_post", "mlp_post"):
            norm = getattr(block, name)
            norms[name] = WeightAndBias(gain(norm), getattr(norm, "bias", None))
    return LayerWeights(matrices, norms, _turn(block, transformer))


def _turn(block: Block, transformer: Transformer) -> Tensor:
    """The rotary table with the weights of the norms of queries and keys, (T, 2 or 3, 2, head_dim)."""
    attention, size = block.attention, transformer.head_dim
    gains = torch.ones(3 if attention.rotate_values else 2, size)
    if attention.q_norm is not None:
        gains[:2] = torch.stack([gain(attention.q_norm), gain(attention.k_norm)])
    gains[0] *= size**-0.5
    cos, sin = torch.ones(transformer.max_length, 1, 1), torch.zeros(transformer.max_length, 1, 1)
    if transformer.table is not None:
        cos, sin = transformer.table[:, :, None].float().unbind(1)
    # A sine meets the other half of its pair, and so that one's weight.
    return torch.stack([cos * gains, sin * gains.roll(size // 2, 1)], 2)


def gain(norm: Any) -> Tensor:
    """What a vector of length 1 is multiplied with to be what the norm makes of it, but for a bias, (C,)."""
    return norm.weight.float() * len(norm.weight) ** 0.5
