"""OpenAI's dVAE of DALL-E 1: names and shapes in its files, and a slow reference for it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.foreign_tensors import Shapes, Tensors


def dvae_shapes(hidden: int, init: int, n_ids: int, blocks: int = 2) -> tuple[Shapes, Shapes]:
    """Names and shapes in encoder.pkl and in decoder.pkl.

    Args:
        hidden: width of the finest group (OpenAI's `n_hid`).
        init: width of the decoder's input (OpenAI's `n_init`).
        n_ids: codebook size.
        blocks: blocks per group.
    """
    encoder = _network_shapes((3, hidden, 7), [1, 2, 4, 8], (3, 3, 3, 1), hidden, n_ids, blocks)
    decoder = _network_shapes((n_ids, init, 1), [8, 4, 2, 1], (1, 3, 3, 3), hidden, 6, blocks)
    return encoder, decoder


def _network_shapes(
    first_conv: tuple[int, int, int],
    group_multiples: list[int],
    block_kernels: tuple[int, ...],
    hidden: int,
    outputs: int,
    blocks: int,
) -> Shapes:
    shapes: Shapes = {}

    def add_conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes.update({f"blocks.{name}.w": (outputs, inputs, kernel, kernel), f"blocks.{name}.b": (outputs,)})

    add_conv("input", *first_conv)
    inputs = first_conv[1]
    for group, multiple in enumerate(group_multiples, 1):
        for block in range(1, blocks + 1):
            name = f"group_{group}.block_{block}"
            width = multiple * hidden
            if inputs != width:
                add_conv(f"{name}.id_path", inputs, width, 1)
            widths = [inputs, width // 4, width // 4, width // 4, width]
            for layer in range(4):
                add_conv(f"{name}.res_path.conv_{layer + 1}", widths[layer], widths[layer + 1], block_kernels[layer])
            inputs = width
    add_conv("output.conv", inputs, outputs, 1)
    return shapes


def _run_network(tensors: Tensors, x: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
    """Either network, with two blocks in each of four groups; `resize` follows all groups but the last."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = tensors[f"blocks.{name}.w"]
        return F.conv2d(x, weight, tensors[f"blocks.{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv("input", x)
    for group in range(1, 5):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            h = x
            for layer in range(1, 5):
                h = conv(f"{name}.res_path.conv_{layer}", h.clamp(min=0))
            x = (conv(f"{name}.id_path", x) if f"blocks.{name}.id_path.w" in tensors else x) + h / 64
        if group < 4:
            x = resize(x)
    return conv("output.conv", x.clamp(min=0))


def dvae_encode(tensors: Tensors, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> ids (B, H/8, W/8)."""
    mapped = 0.8 * (pixels * 0.5 + 0.5) + 0.1

    def largest_of_four(x: Tensor) -> Tensor:
        return x.unfold(-2, 2, 2).unfold(-2, 2, 2).amax((-1, -2))

    return _run_network(tensors, mapped, largest_of_four).argmax(1)


def dvae_decode(tensors: Tensors, image_ids: Tensor) -> Tensor:
    """Ids (B, h, w) -> pixels (B, 3, 8h, 8w) in [-1, 1]."""
    one_hot = F.one_hot(image_ids, tensors["blocks.input.w"].shape[1]).movedim(-1, 1).float()
    statistics = _run_network(tensors, one_hot, lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    return 2 * ((torch.sigmoid(statistics[:, :3]) - 0.1) / 0.8).clamp(0, 1) - 1
