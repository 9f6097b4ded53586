"""Read the tensors of a pickle, and nothing else of it.

A pickle names functions and classes and has them called. Here, tensors are built by those functions of torch that
`torch.load(weights_only=True)` allows too; everything else that is named becomes a placeholder object. No code of the
file is run, and the package that wrote it is not needed.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TENSOR_BUILDERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}
"""The only classes and functions that a pickle may call, by module and name."""
MAX_DEPTH = 50
"""How deep modules lie inside each other; a pickle can have one that lies inside itself."""


class PlaceholderObject:
    """Replaces any other class: accepts any arguments and items, and stores only its attributes."""

    dump_patches = False
    """Read by torch, where a file from before torch 1.6 contains the source code of its classes."""

    def __new__(cls, *_: Any, **__: Any) -> "PlaceholderObject":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Discard an item of a pickled list."""

    def extend(self, values: Any) -> None:
        """Discard the items of a pickled list."""


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _TENSOR_BUILDERS.get((module, name), PlaceholderObject)


class _PickleModule:
    """The attributes that `torch.load` uses of its `pickle_module`."""

    Unpickler = _TensorUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _TensorUnpickler(file, **options).load()


def load(path: str | Path) -> Any:
    """Read a file written by `torch.save`, with placeholders for everything but tensors and plain values.

    Raises:
        ValueError: the file is a TorchScript archive.
        Exception: the file is damaged; the exception can be of any class.
    """
    if is_archive := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                # torch.load would pass it to torch.jit.load, which does not use _PickleModule
                raise ValueError("a TorchScript archive")
    return torch.load(path, map_location="cpu", pickle_module=_PickleModule, weights_only=False, mmap=is_archive)


def module_tensors(module: PlaceholderObject, prefix: str = "", depth: int = MAX_DEPTH) -> dict[str, Tensor]:
    """The state dict of a pickled `nn.Module`, of modules up to `depth` below it; empty if the object is no module."""
    tensors: dict[str, Tensor] = {}
    tables = [vars(module).get(key) for key in ("_parameters", "_buffers", "_modules")]
    for name, value in (entry for table in tables if isinstance(table, dict) for entry in table.items()):
        if isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, PlaceholderObject) and depth:
            tensors |= module_tensors(value, f"{prefix}{name}.", depth - 1)
    return tensors
