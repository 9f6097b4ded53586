"""Tensors under foreign names -> parts of ours, whole or not at all."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import ImageTokenizerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.read_weights import Weights, few
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True)
class Imported:
    """What became of a file."""

    tokenizer: ImageTokenizer
    dtype: torch.dtype
    """Precision of the weights in the file; in `tokenizer` they are float32."""
    left_out: int
    """Tensors in the file that belong to something else."""


@dataclass(frozen=True)
class ImportedTransformer:
    """What became of the file of a transformer."""

    config: TransformerConfig
    stream: StreamConfig
    tensors: dict[str, Tensor]
    """Under our names, in the precision of the file; they take memory only where several had to be joined."""


@dataclass(frozen=True)
class Origin:
    """What is known of a project's models, besides their files."""

    sampling: SamplingConfig
    """Settings it draws with."""
    about: AboutConfig
    card: str
    """Markdown."""


def layout(config: ImageTokenizerConfig, foreign_name: Callable[[str], str]) -> dict[str, tuple[int, ...]]:
    """Foreign names and shapes of all tensors of an image tokenizer; takes no memory.

    Args:
        config: its shape.
        foreign_name: turns our name of a tensor into theirs.
    """
    with torch.device("meta"):
        ours = ImageTokenizer(config, commitment=None).state_dict()
    return {foreign_name(name): tuple(value.shape) for name, value in ours.items()}


def fill(weights: Weights, config: ImageTokenizerConfig, foreign_name: Callable[[str], str]) -> Imported:
    """Make the image tokenizer of a config and give it the weights.

    Raises:
        UserError: they are not the ones it needs; some are named.
    """
    check(weights, layout(config, foreign_name))
    tokenizer = ImageTokenizer(config, commitment=None)
    tokenizer.load_state_dict({name: weights.tensors[foreign_name(name)] for name in tokenizer.state_dict()})
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in weights.tensors.values()))
    return Imported(tokenizer.eval(), dtype, weights.left_out)


def check(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly the wanted ones.

    Raises:
        UserError: naming what is missing, what is too much and what has another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    missing = [name for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted]
    misshapen = [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    faults = {"missing": missing, "not known": extra, "of another shape": misshapen}
    if found := [f"{len(names)} {fault} ({few(names)})" for fault, names in faults.items() if names]:
        raise UserError(f"{weights.source} does not have the {len(wanted)} tensors expected: {'; '.join(found)}")
    if numbers := [name for name, tensor in weights.tensors.items() if not tensor.is_floating_point()]:
        raise UserError(
            f"{weights.source} has tensors that are not floating-point: {few(numbers)}; "
            f"import the weights as they were before they were quantized"
        )


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weight and of the bias that belongs to it."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
