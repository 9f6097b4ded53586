"""What states have in common: their errors, the checksum of a file, and the comparison of sizes with those of a run."""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import file_digest

SEAL = b"blake2b "
"""Beginning of the comment that holds the checksum of a file of `torch.save`."""
SEAL_LENGTH = len(SEAL) + 32


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


def seal(path: Path) -> None:
    """Write the checksum of a file of `torch.save` into it: as the comment of the zip archive that such a file is.

    The archive's own checksums would not do: they leave out its headers and the gaps between its members.
    """
    digest = file_digest(path, length=path.stat().st_size - 2).encode()
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the comment, which was 0
        file.write(struct.pack("<H", SEAL_LENGTH) + SEAL + digest)


def check_seal(path: Path) -> bool:
    """Compare a file of `torch.save` with the checksum in it.

    Returns:
        Whether it has one; files of old versions have none.

    Raises:
        DamagedState: the checksum is wrong.
    """
    size = path.stat().st_size - SEAL_LENGTH - 2
    if size < 0:
        return False
    with path.open("rb") as file:
        file.seek(size)
        length, comment = file.read(2), file.read()
    if length != struct.pack("<H", SEAL_LENGTH) or not comment.startswith(SEAL):
        return False
    if comment != SEAL + file_digest(path, length=size).encode():
        raise DamagedState("wrong checksum")
    return True
