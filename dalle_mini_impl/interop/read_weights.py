"""Read weights from files of other projects, without running any code that is stored in them."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import MAX_HEADER_BYTES
from dalle_mini_impl.interop import safe_pickle
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.read_files import open_regular_file
from dalle_mini_impl.util.text import printable

IGNORED_PREFIXES = ("loss.", "model_ema.", "quantize.codebook_used")
"""Tensors in VQGAN files that only training uses: discriminator and LPIPS (taming-transformers), EMA weights under
names without dots (latent-diffusion), usage counts of the codebook (LlamaGen)."""


WRAPPER_KEYS = (
    "state_dict", "params_ema", "ema", "ema_state_dict", "weights", "model_state_dict", "model", "module", "net",
    "params", "generator",
)  # fmt: skip
"""Keys under which files hold the tensors of a network, averaged ones before others; the first that exists is used."""
MAX_WRAPPERS = 4
"""How many dictionaries may lie around the tensors of a network."""
MARKERS_OF_AVERAGES = ("net_ema", "model_ema", "ema_model", "ema")
"""Prefixes of the averaged one of two networks in a file."""


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
        path: the file; its content says which of the two it is.
        trust_pickle: also read a file that holds more than tensors and plain values. Even then, only tensors are
            built; see `safe_pickle`.

    Returns:
        The content: usually a dictionary of tensors or of dictionaries.

    Raises:
        UserError: the file cannot be read, or it holds more than tensors and plain values and is not trusted.
    """
    if not os.path.lexists(path):
        raise UserError(f"expected a file to import, got {path}, which does not exist; check the path")
    advice = "give a safetensors file or one written by torch.save"
    with open_regular_file(path, "a file to import", advice) as file:
        start = file.read(9)
        size = os.fstat(file.fileno()).st_size
    with warnings.catch_warnings():
        # torch warns about TorchScript archives, which are refused below, and about classes without source code,
        # which are not needed.
        warnings.simplefilter("ignore")
        try:
            if Path(path).suffix.lower() == ".safetensors" or start[8:] == b"{":
                return _read_safetensors(path, start, size)
            is_archive = _is_archive(path, start, size)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
            if _has_meta_tensor(content):
                raise ValueError("tensors without numbers")
            return content
        except UserError:
            raise
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise _more_than_tensors(path, error) from error
        except Exception as error:  # a damaged pickle can raise any exception
            raise _unreadable(path) from error
        try:
            return safe_pickle.load(path)
        except Exception as error:
            raise _unreadable(path) from error


def _read_safetensors(path: str | Path, start: bytes, size: int) -> dict[str, Tensor]:
    if int.from_bytes(start[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError("a header that is too long")
    check_memory(size, f"the weights in {path}", "use a machine with more memory")
    return load_file(path)


def _is_archive(path: str | Path, start: bytes, size: int) -> bool:
    """Whether a file has the format of `torch.save` since torch 1.6; only it can be mapped instead of read.

    Raises:
        ValueError: it has neither this format nor the earlier one, or its entries are larger than the file, as in an
            archive that is made to fill the memory.
    """
    if not zipfile.is_zipfile(path):
        if start[:1] != b"\x80":  # how a pickle begins; torch would also unpack tars
            raise ValueError("no pickle")
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > size or any(entry.compress_type for entry in entries):
            raise ValueError("compressed or overlapping entries")
    return True


def _has_meta_tensor(content: Any, depth: int = MAX_WRAPPERS) -> bool:
    """Whether there is a tensor of which the file has only the shape."""
    if isinstance(content, Mapping) and depth >= 0:
        return any(_has_meta_tensor(value, depth - 1) for value in content.values())
    return isinstance(content, Tensor) and content.is_meta


def find_tensors(content: Any, source: str, wrapper_keys: Sequence[str] = ()) -> Weights:
    """Find the tensors in the content of a file.

    Parts of names that torch adds for a compiled network (`_orig_mod.`) are removed.

    Args:
        content: from `read_file`: a dictionary of tensors, a pickled module, or a dictionary that holds one of these
            under one of `wrapper_keys` or `WRAPPER_KEYS`, which may itself be such a dictionary.
        source: path of the file, for error messages.
        wrapper_keys: keys to look under first; the first that exists is used.

    Raises:
        UserError: there are no tensors, or some refer to more numbers than the file holds.
    """
    found = content
    for _ in range(MAX_WRAPPERS):
        if not isinstance(found, Mapping):
            break
        inner = (found[key] for key in (*wrapper_keys, *WRAPPER_KEYS) if key in found)
        found = next((value for value in inner if isinstance(value, (Mapping, safe_pickle.PlaceholderObject))), found)
    if isinstance(found, safe_pickle.PlaceholderObject):
        found = safe_pickle.module_tensors(found)
    entries = found if isinstance(found, Mapping) else {}
    tensors = {
        str(name).replace("._orig_mod.", "."): value.detach()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(
            f"expected a dictionary of tensors, got {source}, which has none{_what_is_there(content)}; "
            f"give a file of weights"
        )
    _check_storages(tensors, source)
    return Weights(source, tensors)


def _what_is_there(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f" but a {type(content).__name__}"
    return f" but the keys {abbreviate([str(key) for key in content], 5)}" if content else ""


def _check_storages(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that repeat few numbers of a file to make many, and those whose numbers are not in it."""
    for name, tensor in tensors.items():
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized
        if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"expected tensors that hold all their numbers, got {abbreviate([name])} of shape "
                f"{tuple(tensor.shape)} in {source}, which does not; save the file again with contiguous tensors"
            )
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    check_memory(needed, f"the tensors in {source}", "use a machine with more memory")


def select_network(weights: Weights, marker: str) -> Weights:
    """Select the network that has a tensor named `marker`, and remove the prefix that its names have in the file.

    If there are several, the one whose prefix ends with `first_stage_model.` is selected: latent-diffusion and
    taming-transformers call the image tokenizer so in the file of a larger model. Else it is the averaged one, with a
    prefix of `MARKERS_OF_AVERAGES`.

    Raises:
        UserError: there is no such network, or there are several and none is a first stage or an average.
    """
    prefixes = [name.removesuffix(marker) for name in weights.tensors if name.endswith(marker)]
    selected = prefixes if len(prefixes) == 1 else [name for name in prefixes if name.endswith("first_stage_model.")]
    if not selected:
        selected = [name for name in prefixes if name.removesuffix(".").split(".")[-1] in MARKERS_OF_AVERAGES]
    if not prefixes:
        raise UserError(
            f"expected a tensor whose name ends with {marker}, got {len(weights.tensors)} others in {weights.source} "
            f"({abbreviate(sorted(weights.tensors))}); import the file as another format"
        )
    if len(selected) != 1:
        raise UserError(
            f"expected one network, got several in {weights.source}, with the prefixes "
            f"{abbreviate([repr(prefix) for prefix in prefixes], 10)}; give a file with one of them"
        )
    tensors = {
        inner: tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(selected[0]) and not (inner := name.removeprefix(selected[0])).startswith(IGNORED_PREFIXES)
    }
    return Weights(weights.source, tensors, len(weights.tensors) - len(tensors))


def abbreviate(names: Sequence[str], shown: int = 3) -> str:
    """List the first `shown` names, safe to print, and say how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(printable(name[:120]) for name in names[:shown]) + more


def _more_than_tensors(path: str | Path, error: Exception) -> UserError:
    if (blocked := re.search(r"GLOBAL (\S+)", str(error))) is None:
        return _unreadable(path)
    return UserError(
        f"expected only tensors and plain values, got {printable(blocked[1][:120])} in {path}; such a file can run "
        f"programs when it is read: if you trust its source, add --trust-pickle"
    )


def _unreadable(path: str | Path) -> UserError:
    return UserError(
        f"expected safetensors or a file written by torch.save, got {path}, which is damaged or neither; "
        f"download it again"
    )
