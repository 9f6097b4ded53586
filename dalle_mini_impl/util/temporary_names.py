"""Names of temporary files and folders, by which those that killed processes left are found."""

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from pathlib import Path

TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
"""Names of temporary files and folders: machine, process and a random number."""


@functools.cache
def _machine() -> str:
    """Eight hexadecimal digits that tell process numbers of other machines and containers from those of this one."""
    namespace = Path("/proc/self/ns/pid")
    text = f"{platform.node()} {os.readlink(namespace) if namespace.is_symlink() else ''}"
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def temporary_path(path: Path) -> Path:
    """A new hidden path beside `path` with its suffix."""
    stem = path.stem.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
    suffix = path.suffix[:20]
    return path.with_name(f".{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}")


def is_temporary(name: str) -> bool:
    """Whether a file or folder has the name of a temporary one."""
    return TEMPORARY.fullmatch(name) is not None


def remove_litter(folder: Path | str) -> None:
    """Remove the temporary files and folders of this program that processes of this machine left when they were killed.

    Each process looks through each folder once.
    """
    _remove_litter(os.path.abspath(folder), os.getpid())


@functools.lru_cache(maxsize=1024)
def _remove_litter(folder: str, process: int) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = TEMPORARY.fullmatch(entry.name)
            if match is None or match[1] != _machine() or int(match[2]) == process or _is_running(int(match[2])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user
        return True
    return True
