"""Figures of training steps, kept on the device until they are looked at, so that no step waits for it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Figures:
    """Losses and the like of the steps since the last look."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep the figures of a step, from 0: scalars or (n,), all on one device, by name."""
        self._steps.append((step, {name: value.detach() for name, value in values.items()}))

    def look(self) -> list[tuple[int, dict[str, Any]]]:
        """Each step since the last look, with its figures as numbers or lists of numbers; waits for the device once."""
        steps, self._steps = self._steps, []
        values = [value.float().flatten() for _, figures in steps for value in figures.values()]
        numbers = iter(torch.cat(values).tolist() if values else [])
        return [(step, {name: _take(numbers, value) for name, value in figures.items()}) for step, figures in steps]


def _take(numbers: Iterator[float], value: Tensor) -> Any:
    """The next numbers, in the shape of a value."""
    return next(numbers) if value.ndim == 0 else [next(numbers) for _ in range(len(value))]
