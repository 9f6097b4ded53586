"""Choice of the device to compute on."""

import torch

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import available_memory


def choose_device(name: str) -> str:
    """Resolve `auto` to the fastest kind of device available (CUDA, MPS, CPU), and check any other name.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); try --device cpu") from error
    return name


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on a device can still take; on CUDA what torch holds in reserve counts as free."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
