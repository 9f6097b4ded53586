"""Build an image tokenizer from a config and the tensors of another project's file."""

import functools
from collections.abc import Callable

import torch

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.interop.check_tensors import check_tensors
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.result import ImportedImageTokenizer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable


def expected_shapes(config: ImageTokenizerConfig, foreign_name: Callable[[str], str]) -> dict[str, tuple[int, ...]]:
    """Foreign names and shapes of all tensors of an image tokenizer; allocates no memory for them.

    Args:
        config: shape of the image tokenizer.
        foreign_name: maps the name of a tensor in this package to its name in the other project.

    Raises:
        UserError: there is no such network.
    """
    try:
        with torch.device("meta"):
            tensors = ImageTokenizer(config, commitment=None).state_dict()
    except UserError:
        raise
    except Exception as error:  # sizes from a file can make networks raise any exception
        raise UserError(
            f"expected the tensors of an image tokenizer, got sizes that no network has "
            f"({printable(str(error)[:200])}); download the file again or import it as another format"
        ) from error
    return {foreign_name(name): tuple(value.shape) for name, value in tensors.items()}


def build_image_tokenizer(
    weights: Weights, config: ImageTokenizerConfig, foreign_name: Callable[[str], str]
) -> ImportedImageTokenizer:
    """Build the image tokenizer of a config and load the weights into it.

    Args:
        weights: its tensors, under foreign names.
        config: its shape.
        foreign_name: as in `expected_shapes`.

    Raises:
        UserError: the tensors are not exactly those that the config needs; some are named.
    """
    check_tensors(weights, expected_shapes(config, foreign_name))
    tokenizer = ImageTokenizer(config, commitment=None)
    tokenizer.load_state_dict({name: weights.tensors[foreign_name(name)] for name in tokenizer.state_dict()})
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in weights.tensors.values()))
    return ImportedImageTokenizer(tokenizer.eval(), dtype, weights.ignored)
