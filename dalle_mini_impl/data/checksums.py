"""Checksums of the files of a store or token cache, so that damage is found before anything is trained on it."""

import contextlib
import json
import os
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import file_digest, values_digest, write_json

VERIFIED_FILE = "verified.json"
"""Name of the file in a store or cache that remembers which files were verified, with their sizes and times."""


def write_header_file(path: Path, values: dict[str, Any]) -> None:
    """Write a header as JSON with a checksum of itself, which `read_header_file` compares."""
    path.write_text(json.dumps({**values, "checksum": values_digest(values)}))


def read_header_file(path: Path) -> dict[str, Any]:
    """Read a header; one of an old version has no checksum.

    Raises:
        OSError or ValueError: it cannot be read, is damaged, or is no JSON object.
    """
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    expected = values.pop("checksum", None)
    if expected is not None and expected != values_digest(values):
        raise ValueError(f"{path.name} has the checksum {values_digest(values)}, expected {expected}")
    return values


def check_checksums(folder: Path, names: Sequence[str], expected: Mapping[str, str]) -> None:
    """Compare files with their checksums; a file without one is not read.

    Raises:
        ValueError: a file differs; the message names it.
    """
    for name in names:
        if name in expected and (found := file_digest(folder / name)) != expected[name]:
            raise ValueError(f"{name} has the checksum {found}, expected {expected[name]}")


def verify_once(folder: Path, names: Sequence[str], verify: Callable[[], None]) -> None:
    """Call `verify` unless it passed before and none of the files was touched since.

    A touched file has another size, inode, or time of change, which the operating system keeps and no program sets.

    Args:
        folder: of the files; remembers what was verified, where it can be written.
        names: of the files, relative to the folder.
        verify: reads the files and raises an error if one is damaged.
    """
    states = {name: _state(folder / name) for name in names}
    try:
        known = json.loads((folder / VERIFIED_FILE).read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if all(known.get(name) == state for name, state in states.items()):
        return
    verify()
    with contextlib.suppress(UserError):  # a folder that cannot be written is verified each time
        write_json(folder / VERIFIED_FILE, {**known, **states})


def open_array(path: Path) -> np.ndarray:
    """Memory-map a `.npy` file for reading.

    Raises:
        OSError or ValueError: it cannot be read, or is damaged.
    """
    try:
        # As a plain array, of which taking an element costs a tenth.
        return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
    except (SyntaxError, tokenize.TokenError) as error:  # the header is a Python literal
        raise ValueError(f"{path.name} has no header of an array") from error


def _state(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
