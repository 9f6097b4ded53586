"""The tensors of a pickle, and nothing else of it.

A pickle names functions and classes and has them called. Here tensors are built by the few functions of torch
that `torch.load(weights_only=True)` allows too; whatever else is named becomes an empty stand-in, so no program in
the file is run and no package of its author's is needed.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TENSORS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}


class StandIn:
    """Takes the place of any class and its objects, takes whatever it is given, and keeps its attributes."""

    dump_patches = False
    """Asked for by torch where a file has the source of its classes."""

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take what a list would."""

    def extend(self, values: Any) -> None:
        """Take what a list would."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _TENSORS.get((module, name), StandIn)


class _Reader:
    """What torch expects of a pickle module."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def load(path: str | Path) -> Any:
    """What `torch.save` wrote, with stand-ins for all but tensors and plain values.

    Raises:
        ValueError: it is a TorchScript archive.
        Exception: of any kind, where the file is damaged.
    """
    if mapped := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError("a TorchScript archive")  # torch would hand it to another reader
    return torch.load(path, map_location="cpu", pickle_module=_Reader, weights_only=False, mmap=mapped)


def module_tensors(module: StandIn, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a pickled `nn.Module`; empty where it is none."""
    found: dict[str, Tensor] = {}
    tables = [vars(module).get(key) for key in ("_parameters", "_buffers", "_modules")]
    for name, value in (entry for table in tables if isinstance(table, dict) for entry in table.items()):
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, StandIn):
            found |= module_tensors(value, f"{prefix}{name}.")
    return found
