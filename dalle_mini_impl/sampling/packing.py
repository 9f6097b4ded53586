"""Fast decoders made of a transformer, in the precision and layout that its device is fastest with.

On a CPU with a C compiler this is the compiled code of `native`, on CUDA `graph_decoder`, elsewhere the transformer
itself in PyTorch.
"""

import copy
from typing import Any

from torch import nn

from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.patches import PatchTransformer
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.graph_decoder import GraphDecoder, can_record
from dalle_mini_impl.sampling.native.blocks import fits
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.native_decoder import NativeDecoder
from dalle_mini_impl.sampling.native_patches import NativePatchDecoder
from dalle_mini_impl.util.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def choose_precision(precision: str, transformer: Transformer) -> str:
    """Resolve `auto` to the fastest precision without a loss of quality: bf16 where it is supported, else fp32.

    Args:
        precision: one of `PRECISIONS`.
        transformer: on the device it will run on.

    Raises:
        UserError: the precision is unknown, or not supported for this device or this transformer.
    """
    if precision not in PRECISIONS:
        raise UserError(f"expected precision {', '.join(PRECISIONS)}, got {precision!r}; choose one of these")
    if precision == "fp32":
        return precision
    device = transformer.device.type
    obstacle = _native_obstacle(transformer) if device == "cpu" else ""
    if precision == "auto":
        return "bf16" if device == "cuda" or (device == "cpu" and not obstacle) else "fp32"
    if precision == "int8" and device != "cpu":
        raise UserError(f"expected device cpu with precision int8, got {device}; use bf16")
    if obstacle:
        raise UserError(f"precision {precision} needs compiled code, but {obstacle}; use fp32")
    return precision


def pack(transformer: Transformer, precision: str, allowed: tuple[int, int]) -> Decoder:
    """Make a decoder with the weights of a transformer, which is not changed.

    With fp32 it is the transformer itself, on CUDA in a `GraphDecoder`. Else it has a copy of the weights, except that
    compiled code shares the embeddings and the last norm; drop the transformer afterwards to free the others.

    Args:
        transformer: on its device.
        precision: as `choose_precision` returns it: `fp32`, `bf16`, or `int8` (weights only, CPU).
        allowed: `(first, end)` of the ids that will be sampled; the output head is packed for these.
    """
    if transformer.device.type != "cpu":
        copied = transformer if precision == "fp32" else _bf16_copy(transformer)
        is_cuda = transformer.device.type == "cuda"
        return GraphDecoder(copied, records=True) if is_cuda and can_record(transformer) else copied
    if precision == "fp32":
        return transformer
    if isinstance(transformer, PatchTransformer):
        return NativePatchDecoder(transformer, load(), precision == "int8", allowed)
    return NativeDecoder(transformer, load(), precision == "int8", allowed)


def _native_obstacle(transformer: Transformer) -> str:
    """Why this transformer cannot run in compiled code; empty if it can."""
    width, heads, size = transformer.n_embd, transformer.n_head, transformer.head_dim
    if not fits(width, heads, size):
        return f"it does not support n_embd {width} with n_head {heads} of {size} channels each"
    return "" if load() is not None else "there is no C compiler with OpenMP"


def _bf16_copy(transformer: Transformer) -> Transformer:
    """A copy with all floating-point weights in bf16, made one by one."""
    memo: dict[int, Any] = {}
    for parameter in transformer.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().bfloat16(), requires_grad=False)
    for buffer in transformer.buffers():
        memo[id(buffer)] = buffer.bfloat16() if buffer.is_floating_point() else buffer
    return copy.deepcopy(transformer, memo).eval()
