"""What the folder of a picture store holds."""

import os
from pathlib import Path

from dalle_mini_impl.data.checksums import VERIFIED_FILE
from dalle_mini_impl.data.encoded_pictures import PICTURE_INDEX, PICTURES_FILE
from dalle_mini_impl.data.entries import ENTRY_FILES
from dalle_mini_impl.data.remote import is_address

HEADER_FILE = "store.json"
PIXELS_FILE = "pixels.npy"
SOURCES_FILE = "sources.json"
SKIPPED_FILE = "skipped.txt"
CONTENTS = (
    "pi[xc]*.npy", PIXELS_FILE, PICTURES_FILE, PICTURE_INDEX, HEADER_FILE, *ENTRY_FILES, SOURCES_FILE, SKIPPED_FILE,
    VERIFIED_FILE,
)  # fmt: skip
"""Names of all files; the first, a pattern for the pixels or the index of the pictures, marks the folder."""


def source_from(source: str, folder: str | Path) -> str:
    """The path of a source as seen from a folder; an address as it is."""
    return source if is_address(source) else os.path.relpath(_real(source), _real(folder))


def _real(path: str | Path) -> str:
    return os.path.realpath(Path(path).expanduser())
