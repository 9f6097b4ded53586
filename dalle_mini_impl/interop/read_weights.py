"""Read weights from files of other projects, without running any code that is stored in them."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dalle_mini_impl.interop import safe_pickle
from dalle_mini_impl.util.errors import UserError

IGNORED_PREFIXES = ("loss.", "model_ema.", "quantize.codebook_used")
"""Tensors in VQGAN files that only training uses: discriminator and LPIPS (taming-transformers), EMA weights under
names without dots (latent-diffusion), usage counts of the codebook (LlamaGen)."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one network, under the names that its project gives them."""

    source: str
    """Path of the file, for error messages."""
    tensors: dict[str, Tensor]
    ignored: int = 0
    """Number of tensors in the file that belong to other networks or only to training."""

    def size(self, name: str, axis: int) -> int:
        """Length of one axis of a tensor.

        Raises:
            UserError: the tensor is missing or has too few axes.
        """
        if name not in self.tensors:
            raise UserError(
                f"expected a tensor {name}, which determines the shape of the network, got none in {self.source}; "
                f"download the file again or import it as another format"
            )
        shape = tuple(self.tensors[name].shape)
        if not -len(shape) <= axis < len(shape):
            raise UserError(
                f"expected {name} to have an axis {axis}, got shape {shape} in {self.source}; "
                f"download the file again or import it as another format"
            )
        return shape[axis]

    def count_indices(self, pattern: str) -> int:
        """Number of different values of the first group of `pattern`, matched at the beginning of each name.

        With `r"blocks\\.(\\d+)\\."` it is the number of blocks.
        """
        return len({match[1] for name in self.tensors if (match := re.match(pattern, name))})


def read_file(path: str | Path, trust_pickle: bool = False) -> Any:
    """Read a safetensors file or one written by `torch.save`; tensors of the latter are mapped, not copied into memory.

    Args:
        path: the file; read as safetensors if its suffix is `.safetensors`.
        trust_pickle: also read a file that holds more than tensors and plain values. Even then, only tensors are
            built; see `safe_pickle`.

    Returns:
        The content: usually a dictionary of tensors or of dictionaries.

    Raises:
        UserError: the file cannot be read, or it holds more than tensors and plain values and is not trusted.
    """
    with warnings.catch_warnings():
        # torch warns about TorchScript archives, which are refused below, and about classes without source code,
        # which are not needed.
        warnings.simplefilter("ignore")
        try:
            if Path(path).suffix == ".safetensors":
                return load_file(path)
            is_archive = zipfile.is_zipfile(path)  # the format of torch.save since torch 1.6; only it can be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
        except FileNotFoundError as error:
            raise UserError(f"expected a file to import, got {path}, which does not exist; check the path") from error
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise _more_than_tensors(path, error) from error
        except (SafetensorError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
            raise _unreadable(path) from error
        try:
            return safe_pickle.load(path)
        except Exception as error:  # a damaged pickle can raise any exception
            raise _unreadable(path) from error


def find_tensors(content: Any, source: str, wrapper_keys: Sequence[str] = ()) -> Weights:
    """Find the tensors in the content of a file.

    Args:
        content: from `read_file`: a dictionary of tensors, a pickled module, or a dictionary that holds one of these
            under one of `wrapper_keys`.
        source: path of the file, for error messages.
        wrapper_keys: keys to look under; the first that exists is used.

    Raises:
        UserError: there are no tensors.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in wrapper_keys if key in content), content)
    if isinstance(content, safe_pickle.PlaceholderObject):
        content = safe_pickle.module_tensors(content)
    entries = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value.detach() for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"expected a dictionary of tensors, got {source}, which has none; give a file of weights")
    return Weights(source, tensors)


def select_network(weights: Weights, marker: str) -> Weights:
    """Select the network that has a tensor named `marker`, and remove the prefix that its names have in the file.

    If there are several, the one whose prefix ends with `first_stage_model.` is selected: latent-diffusion and
    taming-transformers call the image tokenizer so in the file of a larger model.

    Raises:
        UserError: there is no such network, or there are several and none is a first stage.
    """
    prefixes = [name.removesuffix(marker) for name in weights.tensors if name.endswith(marker)]
    selected = prefixes if len(prefixes) == 1 else [name for name in prefixes if name.endswith("first_stage_model.")]
    if not prefixes:
        raise UserError(
            f"expected a tensor whose name ends with {marker}, got {len(weights.tensors)} others in {weights.source} "
            f"({abbreviate(sorted(weights.tensors))}); import the file as another format"
        )
    if len(selected) != 1:
        raise UserError(
            f"expected one network, got several in {weights.source}, with the prefixes "
            f"{', '.join(map(repr, prefixes))}; give a file with one of them"
        )
    tensors = {
        inner: tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(selected[0]) and not (inner := name.removeprefix(selected[0])).startswith(IGNORED_PREFIXES)
    }
    return Weights(weights.source, tensors, len(weights.tensors) - len(tensors))


def abbreviate(names: Sequence[str], shown: int = 3) -> str:
    """List the first `shown` names, and say how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _more_than_tensors(path: str | Path, error: Exception) -> UserError:
    if (blocked := re.search(r"GLOBAL (\S+)", str(error))) is None:
        return _unreadable(path)
    return UserError(
        f"expected only tensors and plain values, got {blocked[1]} in {path}; such a file can run programs when it is "
        f"read: if you trust its source, add --trust-pickle"
    )


def _unreadable(path: str | Path) -> UserError:
    return UserError(
        f"expected safetensors (by the suffix) or a file written by torch.save, got {path}, which is damaged or "
        f"neither; download it again"
    )
