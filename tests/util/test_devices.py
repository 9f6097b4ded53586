import pytest
import torch

from dalle_mini_impl.util.devices import choose_device, free_memory
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import available_memory


@pytest.mark.parametrize("device", ["nonsense", "cuda:97", ""])
def test_devices_that_do_not_exist_are_refused_in_one_line(device):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used .*try --device cpu") as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


def test_auto_chooses_a_device_that_works():
    device = choose_device("auto")
    assert torch.empty(3, device=device).shape == (3,)
    assert choose_device("cpu") == "cpu"


def test_free_memory_is_that_of_the_device(monkeypatch):
    assert free_memory(torch.device("cpu")) == pytest.approx(available_memory(), rel=0.5)
    figures = {"mem_get_info": (1000, 5000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda", 1)) == 1000 + 400
