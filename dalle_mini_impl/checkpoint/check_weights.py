"""Checks of weights from files: that they are numbers, and that a config does not ask for more than the file holds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dalle_mini_impl.util.errors import UserError

FACTORIES: dict[Callable[..., Any], Callable[..., float]] = {
    **dict.fromkeys(
        (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn),
        lambda *size, **options: _product(size, options),
    ),
    torch.full: lambda size, *_, **__: _product((size,), {}),
    torch.randint: lambda *arguments, **options: _product((arguments[-1] if arguments else 0,), options),
    torch.arange: lambda *arguments, **options: _range_length(arguments, options),
    torch.linspace: lambda start, end, steps=100, **_: steps,
}
"""Functions that make tensors from sizes, and how many numbers they make for their arguments."""
EXTRA_NUMBERS = 2**25
"""How many numbers a network may have besides weights: attention masks, tables of positions, temporary values."""
LEAST_COST = 2**14
"""Every tensor counts for at least so many numbers, because its objects in Python need memory, too."""
INFINITY = {
    torch.bfloat16: (torch.int16, np.uint16),
    torch.float16: (torch.int16, np.uint16),
    torch.float32: (torch.int32, np.uint32),
}
"""Floating-point types whose bit patterns are compared as integers, signed and unsigned, of the same size."""


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors on the CPU that have a NaN or an infinity, also after conversion to float32."""
    return [
        name for name, tensor in tensors.items() if tensor.numel() and not tensor.is_meta and not _is_finite(tensor)
    ]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return not tensor.is_complex()
    if tensor.dtype not in INFINITY:
        tensor = tensor.float()
    # Infinities and NaN have the largest bit patterns of each sign. Two maxima take a hundredth of `isfinite`'s time.
    signed, unsigned = INFINITY[tensor.dtype]
    infinities = torch.tensor([torch.inf, -torch.inf], dtype=tensor.dtype).view(signed).numpy()
    bits = tensor.detach().contiguous().view(signed).numpy()
    return bool(bits.max() < infinities[0] and bits.view(unsigned).max() < infinities.view(unsigned)[1])


@contextmanager
def limited_numbers(
    limit: int, message: str = "its config describes a network with more weights than the file has"
) -> Iterator[None]:
    """Context in which networks are built whose tensors have at most `limit` numbers together, plus `EXTRA_NUMBERS`.

    A tensor is refused before it is allocated.

    Args:
        limit: most numbers.
        message: of the error.

    Raises:
        UserError: the network has more.
    """
    with _Limit(limit + EXTRA_NUMBERS, message):
        yield


class _Limit(TorchFunctionMode):
    def __init__(self, limit: int, message: str) -> None:
        super().__init__()
        self.left: float = limit
        self.message = message

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in FACTORIES:
            self.left -= max(FACTORIES[func](*args, **options), LEAST_COST)
            if self.left < 0:
                raise UserError(self.message)
        return func(*args, **options)


def _product(size: tuple[Any, ...], options: Mapping[str, Any]) -> float:
    product = 1.0
    for side in options.get("size", size[0] if size and isinstance(size[0], (tuple, list)) else size):
        product *= int(side)
    return product


def _range_length(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> float:
    bounds = [*arguments, *(options[name] for name in ("start", "end", "step") if name in options)]
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    return float(end - start) / float(step) if step else 0
