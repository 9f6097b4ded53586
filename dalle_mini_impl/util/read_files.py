"""Reads files that others may have written: regular files only, up to a size, with errors that name the cause."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from dalle_mini_impl.util.errors import UserError


def is_file(path: Path | str) -> bool:
    """Whether there is a regular file, also behind a link; False where that cannot be found out."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # such as a folder that may not be entered, or a name that no file can have
        return False


def open_regular_file(path: Path | str, what: str, advice: str) -> BinaryIO:
    """Open a regular file for reading; a device or a pipe, which may never end, is refused without waiting for it.

    Args:
        path: of the file, or of a link to it.
        what: what the file is, for error messages.
        advice: what to do where it is missing or no regular file, for error messages.

    Raises:
        UserError: it is missing, no regular file, or cannot be opened.
    """
    try:
        # Opening a pipe would otherwise wait until somebody writes to it.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, what, advice) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        kind = "a folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "a device or a pipe"
        os.close(number)
        raise UserError(f"expected {what}, got {path}, which is {kind}; {advice}")
    return os.fdopen(number, "rb")


def read_file(path: Path | str, limit: int, what: str, advice: str) -> bytes:
    """Read a regular file whole.

    Args:
        path: of the file, or of a link to it.
        limit: its largest size in bytes.
        what: what the file is, for error messages.
        advice: what to do where it is missing, too large or no regular file, for error messages.

    Raises:
        UserError: it is missing, no regular file, too large, or cannot be read.
    """
    with open_regular_file(path, what, advice) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise unreadable(path, error, what, advice) from error
    if len(content) > limit:
        raise UserError(f"expected {what} of up to {limit:,} bytes, got {path}, which is larger; {advice}")
    return content


def unreadable(path: Path | str, error: Exception, what: str, advice: str) -> UserError:
    """The error for a file that could not be opened or read; where access is denied, that is the cause it names."""
    if isinstance(error, PermissionError):
        return UserError(
            f"cannot read {what} {path}: permission denied; change its access rights or those of its folder"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(f"cannot read {what} {path}: {reason}; {advice}")
