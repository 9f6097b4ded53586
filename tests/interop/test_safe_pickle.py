"""Of a pickle, only tensors are read; nothing in it is run."""

import os
import sys
import types

import pytest
import torch
from helpers.foreign_examples import VQGAN, has_weights
from torch import nn

from dalle_mini_impl.interop import safe_pickle
from dalle_mini_impl.interop.image import taming_vqgan
from dalle_mini_impl.interop.read_weights import find_tensors, read_file
from dalle_mini_impl.util.errors import UserError


class MakesFolder:
    """Makes a folder when it is unpickled, as a malicious file would run a program."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def module_of_a_missing_class():
    """A module like OpenAI's files hold: its class and that of one attribute are in a package that is not installed."""
    package = types.ModuleType("missing_package")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(nn.Linear(5, 7), nn.Upsample(scale_factor=2)))
            self.register_buffer("count", torch.arange(3))
            self.device = torch.device("cpu")
            self.other = SpecialList()

    class SpecialList(list):
        pass

    for kind in (Net, SpecialList):
        kind.__module__ = "missing_package"
        kind.__qualname__ = kind.__name__
        setattr(package, kind.__name__, kind)
    sys.modules["missing_package"] = package
    net = Net()
    net.other.extend([1, 2])
    net.other.append(3)
    return net


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_tensors_of_a_pickled_module_are_read_without_its_class(archive, recwarn):
    net = module_of_a_missing_class()
    state = net.state_dict()
    torch.save(net, "net.pkl", _use_new_zipfile_serialization=archive)
    del sys.modules["missing_package"]
    recwarn.clear()
    content = read_file("net.pkl", trust_pickle=True)
    assert not recwarn.list
    tensors = find_tensors(content, "net.pkl").tensors
    assert tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())
    assert not any(value.requires_grad for value in tensors.values())


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
def test_nothing_in_a_pickle_is_run(tmp_path, archive):
    content = {"state_dict": VQGAN, "callbacks": {MakesFolder: 3}, "call": MakesFolder(tmp_path / "made")}
    torch.save(content, "last.ckpt", _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match="expected only tensors and plain values"):
        taming_vqgan.load("last.ckpt")
    imported = taming_vqgan.load("last.ckpt", trust_pickle=True)
    assert has_weights(imported, VQGAN)
    assert not (tmp_path / "made").exists()


def test_placeholder_accepts_any_arguments_items_and_states():
    placeholder = safe_pickle.PlaceholderObject(1, named=2)
    placeholder["key"] = 3
    placeholder.append(4)
    placeholder.extend([5])
    placeholder.__setstate__(("not", "a dictionary"))
    placeholder.__setstate__({"_modules": {"a": None}, "_parameters": {"w": torch.ones(2), "b": None}, "_buffers": 3})
    assert list(safe_pickle.module_tensors(placeholder)) == ["w"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*TorchScript archive:UserWarning")
def test_torchscript_is_refused():
    torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)).save("net.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        safe_pickle.load("net.pt")
