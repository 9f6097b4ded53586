"""Pictures that answers refer to by address: files of one folder, with names that nobody can guess, for a while."""

import contextlib
import os
import re
import secrets
import time
from pathlib import Path

from dalle_mini_impl.util.files import os_errors_for_user

NAME = re.compile(r"[A-Za-z0-9_-]{43}\.(png|jpeg|webp)")
"""Names of the files: 256 random bits."""
MAX_FILES = 10_000
"""Most files; beyond, the oldest are removed before their time."""


class PictureFiles:
    """Writes and finds the pictures of a folder. Nothing else in it is touched.

    Args:
        folder: made if it is absent; several services may share it.
        seconds: how long a picture is kept.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        with os_errors_for_user(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, content: bytes, ending: str = ".png") -> str:
        """Write a picture.

        Args:
            content: of the file.
            ending: of its name.

        Returns:
            The name of its file.

        Raises:
            OSError: it cannot be written: no mistake of the client's.
        """
        name = f"{secrets.token_urlsafe(32)}{ending}"
        path = self._folder / name
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
                target.write(content)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return name

    def read(self, name: str) -> bytes | None:
        """Content of a picture; None if there is none of this name, or its time is over."""
        if not NAME.fullmatch(name):
            return None
        try:
            file = os.open(self._folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return None
        with os.fdopen(file, "rb") as source:
            return source.read() if self._is_fresh(os.fstat(file).st_mtime) else None

    def remove_old(self) -> None:
        """Remove the pictures whose time is over, and the oldest beyond `MAX_FILES`."""
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):  # another service has removed it
                if NAME.fullmatch(entry.name):
                    files.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
        files.sort(reverse=True)
        for number, (written, path) in enumerate(files):
            if number >= MAX_FILES or not self._is_fresh(written):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _is_fresh(self, written: float) -> bool:
        return time.time() - written < self._seconds
