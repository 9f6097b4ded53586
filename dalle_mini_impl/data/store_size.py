"""The size of stored pictures: in the header of a store, in messages, and in the command that builds the store."""

import shlex
from collections.abc import Sequence

from dalle_mini_impl.config.data import DataConfig


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, which may be given as the side of a square."""
    return (size, size) if isinstance(size, int) else size


def size_in_header(frame: tuple[int, int]) -> int | list[int]:
    """How a header holds the (height, width) of stored pictures: as one number where they are square."""
    return frame[0] if frame[0] == frame[1] else list(frame)


def frame_of_header(size: object) -> tuple[int, int]:
    """The (height, width) that a header holds.

    Raises:
        ValueError: it holds something else.
    """
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or list(map(type, sides)) != [int, int]:
        raise ValueError(f"expected a size in the header, got {size}")
    return sides[0], sides[1]


def shown_size(frame: Sequence[int]) -> str:
    """(height, width) as text: one number where they are equal."""
    return str(frame[0]) if frame[0] == frame[1] else f"{frame[0]}×{frame[1]}"


def rebuild_advice(config: DataConfig, frame: Sequence[int]) -> str:
    """What to do so that the store of a config is built anew with pictures of (height, width)."""
    if config.sources:
        return "delete the store, so that training builds it anew"
    return f"rebuild with `{store_command(config, frame)}`"


def store_command(config: DataConfig, frame: Sequence[int]) -> str:
    """The command that builds the store of a config with pictures of (height, width)."""
    paths = f"{shlex.quote(config.source)} --out {shlex.quote(config.store)}"
    size = shown_size(frame).replace("×", "x")
    options = f"--size {size} --validation {config.validation:g} --fit {config.fit}"
    options += (
        f" --every {config.every}" * (config.every > 1) + f" --format {config.store_format}" * config.stores_encoded
    )
    return f"dalle data store {paths} {options}"
