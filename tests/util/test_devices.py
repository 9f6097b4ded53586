import pytest
import torch

from dalle_mini_impl.util.devices import choose_device
from dalle_mini_impl.util.errors import UserError


@pytest.mark.parametrize("device", ["nonsense", "cuda:97", ""])
def test_devices_that_do_not_exist_are_refused_in_one_line(device):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used .*try --device cpu") as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


def test_auto_chooses_a_device_that_works():
    device = choose_device("auto")
    assert torch.empty(3, device=device).shape == (3,)
    assert choose_device("cpu") == "cpu"
