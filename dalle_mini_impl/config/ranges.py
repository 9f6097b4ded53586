"""Ranges of the numbers in configs, as annotations of their fields, and the check of a config. Imports no torch."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True)
class Interval:
    """The values that a number of a config may have."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    """Whether `least` itself is excluded."""
    below: bool = False
    """Whether `most` itself is excluded."""

    def __contains__(self, value: float) -> bool:
        is_above = value > self.least if self.above else value >= self.least
        return is_above and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        least = f"more than {self.least}" if self.above else f"at least {self.least}"
        most = f"less than {self.most}" if self.below else f"at most {self.most}"
        return least if self.most == math.inf else f"{least} and {most}"


@dataclass(frozen=True)
class NotEmpty:
    """Marks a list that needs at least one item."""


Count = Annotated[int, Interval(1)]
Natural = Annotated[int, Interval(0)]
Side = Annotated[int, Interval(1, 2**14)]
"""Pixels or cells along a side."""
Width = Annotated[int, Interval(1, 2**20)]
"""Channels, heads or vectors of a network."""
Depth = Annotated[int, Interval(0, 10_000)]
"""Blocks of a network."""
Length = Annotated[int, Interval(1, 2**16)]
"""Ids of a caption."""
Batch = Annotated[int, Interval(1, 2**24)]
"""Pictures or passes of a step."""
NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(0, above=True)]
Share = Annotated[float, Interval(0, 1)]
Decay = Annotated[float, Interval(0, 1, below=True)]


def check_ranges(config: Any, name: str = "") -> None:
    """Check all numbers of a config: they are finite, and in the range that their field's type names.

    Args:
        config: a config of any class.
        name: its own name, for the message; empty for the whole config of a stage.

    Raises:
        UserError: one is not; the message names it.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        _check(hints[field.name], getattr(config, field.name), f"{name}.{field.name}" if name else field.name)


def _check(hint: Any, value: Any, name: str) -> None:
    marks: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *rest = typing.get_args(hint)
        marks = tuple(rest)
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(value):
        check_ranges(value, name)
    elif isinstance(value, tuple):
        if not value and any(isinstance(mark, NotEmpty) for mark in marks):
            raise UserError(f"expected at least one value in {name}, got none; add one")
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        for item_hint, item in zip(hints, value, strict=True):
            _check(item_hint, item, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(arguments[1], item, f"{name}.{key}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        ranges = [mark for mark in marks if isinstance(mark, Interval)]
        if not math.isfinite(value):
            raise UserError(f"expected a finite {name}, got {value}; change it")
        if ranges and value not in ranges[0]:
            raise UserError(f"expected {name} of {ranges[0]}, got {value}; change it")
