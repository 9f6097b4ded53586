"""What both kinds of states have in common: their errors, and the comparison of saved sizes with those of a run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dalle_mini_impl.util.errors import UserError


class DamagedState(Exception):
    """A state that was altered or cut off; the message says how that shows."""


@contextlib.contextmanager
def errors_as_damage() -> Iterator[None]:
    """Turn whatever reading an altered file raises, which can be of any class, into `DamagedState`."""
    try:
        yield
    except (UserError, DamagedState, MemoryError):
        raise
    except Exception as error:
        raise DamagedState(type(error).__name__) from error


def check_sizes(path: Path, saved: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
    """Compare the sizes of saved tensors with those of a run, by name.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            difference = f"{name} is {saved.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
            raise UserError(
                f"{path} is the state of another model or optimizer ({difference}); "
                f"resume with the config it was started with"
            )
