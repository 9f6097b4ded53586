"""Reading weights from files of other projects, without running anything that is in them."""

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

DROPPED = ("loss.", "model_ema.", "quantize.codebook_used")
"""What training leaves in VQGAN files: discriminator and LPIPS (taming), averages under names of their own (latent
diffusion), counts of ids (LlamaGen)."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one network under its own names."""

    source: str
    """The file, for messages."""
    tensors: dict[str, Tensor]
    left_out: int = 0
    """Tensors in the file that belong to something else."""

    def size(self, name: str, axis: int) -> int:
        """Length of one axis of a tensor.

        Raises:
            UserError: there is no such tensor, or it has not as many axes.
        """
        if name not in self.tensors:
            raise UserError(
                f"{self.source} has no {name}, which tells the shape of the network; "
                f"it is incomplete or of another kind"
            )
        shape = tuple(self.tensors[name].shape)
        if not -len(shape) <= axis < len(shape):
            raise UserError(f"{self.source}: {name} has shape {shape}; it is damaged or of another kind")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many different numbers `pattern` finds at the beginning of names."""
        return len({found[1] for name in self.tensors if (found := re.match(pattern, name))})


def read(path: str | Path, trust_pickle: bool = False) -> Any:
    """The content of a safetensors file or of one written by `torch.save`, without taking memory for tensors.

    Args:
        path: the file; safetensors by its suffix.
        trust_pickle: also read files that hold more than tensors and plain values. Even then nothing but tensors is
            built (`pickles`).

    Raises:
        UserError: it cannot be read, or it holds more and is not trusted.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about what is refused here or is so on purpose
        try:
            if Path(path).suffix == ".safetensors":
                return load_file(path)
            mapped = zipfile.is_zipfile(path)  # as torch writes since 1.6
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except FileNotFoundError as error:
            raise UserError(f"no file {path}; name the file to import") from error
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise _more_than_tensors(path, error) from error
        except (SafetensorError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
            raise _unreadable(path) from error
        try:
            return safe_pickle.load(path)
        except Exception as error:  # a damaged pickle fails in any way
            raise _unreadable(path) from error


def state_dict(content: Any, source: str, wrappers: Sequence[str] = ()) -> Weights:
    """Find the tensors in what `read` gives.

    Args:
        content: a table of tensors, a pickled module, or a table that holds one of them beside other things.
        source: the file, for messages.
        wrappers: under which keys to look, the first that is there.

    Raises:
        UserError: there are none.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in wrappers if key in content), content)
    if isinstance(content, safe_pickle.StandIn):
        content = safe_pickle.module_tensors(content)
    table = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value.detach() for name, value in table.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{source} holds no tensors where they are expected; it is no file of weights")
    return Weights(source, tensors)


def under_prefix(weights: Weights, marker: str) -> Weights:
    """The network that has a tensor called `marker`, with whatever prefix its names have in the file taken off.

    Of several, the one that a transformer's file calls its first stage.

    Raises:
        UserError: there is none, or it cannot be told which of several is meant.
    """
    prefixes = [name.removesuffix(marker) for name in weights.tensors if name.endswith(marker)]
    chosen = prefixes if len(prefixes) == 1 else [name for name in prefixes if name.endswith("first_stage_model.")]
    if not prefixes:
        raise UserError(
            f"{weights.source} has no tensor whose name ends with {marker}; its {len(weights.tensors)} "
            f"are {few(sorted(weights.tensors))}; import it as another format"
        )
    if len(chosen) != 1:
        raise UserError(
            f"{weights.source} holds several networks, under {', '.join(map(repr, prefixes))}; "
            f"give a file with one of them"
        )
    tensors = {
        inner: tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(chosen[0]) and not (inner := name.removeprefix(chosen[0])).startswith(DROPPED)
    }
    return Weights(weights.source, tensors, len(weights.tensors) - len(tensors))


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _more_than_tensors(path: str | Path, error: Exception) -> UserError:
    if (blocked := re.search(r"GLOBAL (\S+)", str(error))) is None:
        return _unreadable(path)
    return UserError(
        f"{path} holds more than tensors ({blocked[1]}), and such a file can run programs when it is "
        f"read; if you trust where it comes from, add --trust-pickle"
    )


def _unreadable(path: str | Path) -> UserError:
    return UserError(
        f"{path} is damaged, or neither safetensors (by its suffix) nor written by torch.save; download it again"
    )
