"""Reads files that a user names or that others may have written: regular files only, and never more than a limit.

A pipe would wait for ever for its writer, and a device such as `/dev/zero` has no end.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from dalle_mini_impl.util.errors import UserError

MAX_PICTURE_BYTES = 1 << 29
"""Largest picture file that is read."""
MAX_TEXT_BYTES = 1 << 26
"""Largest file of captions, labels or settings that is read; tables of many pictures may be larger."""
PIPES_OF_THIS_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""How paths begin that a shell gives for standard input and for `<(command)`."""


class IrregularFile(UserError):
    """A folder, a pipe or a device, where a file was expected."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
        """What it is, with its article."""


def open_regular(path: str | Path, *, allow_pipe: bool = False) -> BinaryIO:
    """Open a file to read its bytes.

    Args:
        path: of the file; links are followed.
        allow_pipe: also open standard input and the pipe of `<(command)`, which end with their writer.

    Raises:
        UserError: it is a folder, a pipe or a device.
        OSError: it is missing or cannot be read.
        ValueError: the path has a NUL character.
    """
    is_own_pipe = allow_pipe and str(path).startswith(PIPES_OF_THIS_PROCESS)
    if not is_own_pipe:
        _check_regular(path, os.stat(path).st_mode)  # opening some devices has effects of its own
    # Without O_NONBLOCK, a pipe that took the file's place meanwhile would be waited for here.
    descriptor = os.open(path, os.O_RDONLY | (0 if is_own_pipe else getattr(os, "O_NONBLOCK", 0)))
    try:
        if not is_own_pipe:
            _check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise IrregularFile(f"expected {path} to be a file, got {kind}; name a file", kind)


def read_bytes(path: str | Path, limit: int, *, allow_pipe: bool = False) -> bytes:
    """Read a whole file.

    Args:
        path: of the file.
        limit: in bytes; a larger file is refused before it is read.
        allow_pipe: see `open_regular`.

    Raises:
        UserError: it is no regular file, or larger than `limit`.
        OSError: it is missing or cannot be read.
        ValueError: the path has a NUL character.
    """
    with open_regular(path, allow_pipe=allow_pipe) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise UserError(f"expected {path} to have at most {limit} bytes, got {max(size, len(content))}; name another")
    return content


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
        return open_regular(path)
    except IrregularFile as error:
        raise UserError(f"expected {what}, got {path}, which is {error.kind}; {advice}") from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error, what, advice) from error


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
