"""Where to compute."""

import torch

from dalle_mini_impl.util.errors import UserError


def choose_device(name: str) -> str:
    """Resolve `auto` to the best device there is, and check any other.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); try --device cpu") from error
    return name
