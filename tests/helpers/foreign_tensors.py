"""What the slow references for other projects' models share: tables of random tensors, and plain layers on them.

The references `foreign_*` are written from the layouts of the projects' files, without the package's networks:
functions on tables of tensors that compute one step after the other, as obviously as possible.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def random_tensors(shapes: Shapes, seed: int = 0, gain: float = 1.0) -> Tensors:
    """Tensors of convolutional networks and of DALLE-pytorch in which signals neither vanish nor explode.

    Args:
        shapes: names and shapes.
        seed: of the random numbers.
        gain: factor on matrices and kernels that compensates for ReLUs and the like.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        spread = gain * torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.1
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tensors[name] = mean + spread * torch.randn(shape, generator=generator)
    return tensors


def random_gpt_tensors(shapes: Shapes, seed: int = 0) -> Tensors:
    """Tensors of minDALL-E and ruDALL-E; embeddings and heads are large enough for logits that differ."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        is_norm = len(shape) == 1 and name.endswith("weight")
        spread = 0.2 if len(shape) == 1 else 1.0 if "emb" in name else 2.5 * shape[1] ** -0.5
        tensors[name] = is_norm + spread * torch.randn(shape, generator=generator)
    return tensors


def on_meta_device(shapes: Shapes) -> Tensors:
    """Tensors of these shapes that take no memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def weight_and_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def conv_shapes(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return weight_and_bias(name, outputs, inputs, kernel, kernel)


def conv(tensors: Tensors, name: str, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=stride, padding=padding)


def linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def layer_norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normalised * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def greedy_ids(logits_after: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """The first `count` ids of greedy decoding.

    Args:
        logits_after: ids so far (n,) -> logits (…, K), of which the last row belongs to the next id.
        count: number of ids.
    """
    ids = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        ids = torch.cat([ids, logits_after(ids)[-1].argmax()[None]])
    return ids
