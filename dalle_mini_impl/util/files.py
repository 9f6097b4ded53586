"""Finds files that ship with the package, and writes files and folders whole or not at all."""

import errno
import fnmatch
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.temporary_names import is_temporary, remove_litter, temporary_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parent.parent
"""Folder of the installed package."""
READ_BYTES = 2**22
"""Bytes hashed at a time, which bounds memory."""

_held_locks: set[int] = set()
"""The locked files by which this process holds the right to write."""


def find_shipped(path: Path | str) -> Path:
    """Return the path itself if it exists, else the file of that name that ships with the package, if any.

    Configs and tokenizers are inside an installed package and at the top of a clone, so paths such as `configs/…` and
    `tokenizers/…` work from any current folder.
    """
    if not Path(path).exists():
        for folder in (PACKAGE, PACKAGE.parent):
            if (folder / path).exists():
                return folder / path
    return Path(path)


@contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block ends without an error, that file replaces `path`.

    The file is on the disk before it gets its name, so that after a crash or a power cut `path` is the old file or the
    new one, whole. The temporary file is new, in the same folder and has a random name, which keeps the suffix, because
    Pillow and other libraries choose the format by it. Those that killed processes left behind are removed. The file
    gets the access rights of any new file, whatever rights the library that writes it gives.

    A device or a pipe receives the content and is never replaced: root could replace even `/dev/null`.

    Raises:
        UserError: the path cannot be written.
    """
    path = Path(path)
    with os_errors_for_user(path):
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        folder = Path(tempfile.gettempdir()) if is_special else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_litter(folder)
        temporary = temporary_path(folder / path.name)
        try:
            file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            mode = os.fstat(file).st_mode & 0o777
            os.close(file)
            yield temporary
            if is_special:
                with temporary.open("rb") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                temporary.chmod(mode)
                flush_to_disk(temporary)
                os.replace(temporary, path)
                flush_to_disk(folder)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path | str, values: Any) -> Path:
    """Write values as JSON, whole or not at all.

    Raises:
        UserError: the path cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_text(format_json(values), encoding="utf-8")
    return Path(path)


def format_json(values: Any) -> str:
    """Values as indented JSON, in which only text that UTF-8 cannot encode (some file names) is escaped.

    JSON has no infinite numbers and no not-a-number: they become null.
    """
    return dump_json(values, indent=1)


def dump_json(values: Any, indent: int | None = None) -> str:
    """As `format_json`; without `indent` in one line."""
    values = _with_null(values)
    text = json.dumps(values, ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(values, indent=indent, allow_nan=False)
    return text


def _with_null(values: Any) -> Any:
    """Nested values with None for each number that JSON does not have."""
    if isinstance(values, dict):
        return {key: _with_null(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_with_null(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


@contextmanager
def replace_folder(path: Path | str, contents: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder to fill; if the block ends without an error, it replaces the folder `path`.

    Args:
        path: absent, empty, or a folder that this program wrote before.
        contents: names or patterns of everything that the block writes directly into the folder. The first one marks a
            folder as written by this program: it is in every one, and in no folder of another kind.

    Raises:
        UserError: the path holds anything else, or cannot be written.
    """
    path = Path(path)
    check_replaceable(path, contents)
    with os_errors_for_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(path.parent)
        temporary = temporary_path(path)
        temporary.mkdir()
        old = temporary_path(path)
        try:
            yield temporary
            for root, _, files in os.walk(temporary):
                for file in files:
                    flush_to_disk(Path(root, file))
                flush_to_disk(Path(root))
            check_replaceable(path, contents)  # the block may have taken hours
            if path.exists():
                os.rename(path, old)
                try:
                    os.rename(temporary, path)
                except OSError:
                    os.rename(old, path)
                    raise
            else:
                os.rename(temporary, path)
            flush_to_disk(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if path.exists():  # after an interrupt between the renames `old` holds the only copy
                shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: Path | str, contents: Sequence[str]) -> None:
    """Check that a folder is absent, empty or written by this program, before work begins; see `replace_folder`.

    Raises:
        UserError: it holds anything else, of which the message names one thing; or the path has no name of its own.
    """
    path = Path(path)
    _check_named(path)
    with os_errors_for_user(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            kind = "a link" if path.is_symlink() else "a file"
            raise UserError(f"expected {path} to be a folder or absent, got {kind}; name another folder")
        names = sorted(name for name in os.listdir(path) if not is_temporary(name)) if path.exists() else []
    strange = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in contents)]
    if not any(fnmatch.fnmatchcase(name, contents[0]) for name in names):
        strange = strange or names
    if strange:
        raise UserError(
            f"expected {path} to be absent, empty or written by this command before, got a folder with {strange[0]}; "
            "name another folder, so that nothing of yours is replaced"
        )


def remove_folder(path: Path | str) -> None:
    """Remove a folder that this program wrote: whatever ends the process meanwhile, it is there whole or not at all.

    What a killed process leaves of it has a temporary name, and is removed by a later one.

    Raises:
        UserError: it cannot be removed.
    """
    path = Path(path)
    with os_errors_for_user(path):
        doomed = temporary_path(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _check_named(path: Path) -> None:
    """Refuse `.`, `..` and `/` as what is written, because what is written beside it is named after it."""
    if path.name in ("", ".."):
        raise UserError(f"expected a folder with a name of its own, got {path}; name a new folder")


@contextmanager
def only_writer(path: Path | str) -> Iterator[None]:
    """Hold the right to write a file or folder; a second process, or thread, that asks for it is refused at once.

    The right is a lock on a hidden file beside `path`, which the operating system releases when the process ends,
    however it ends. Where there are no such locks (Windows), nothing is locked.

    Raises:
        UserError: another process holds the right, the folder cannot be written, or the path has no name of its own.
    """
    if fcntl is None:
        yield
        return
    with os_errors_for_user(path):
        path = Path(path).absolute()
        _check_named(path)
        lock = path.with_name(f".{path.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(lock, path)
    _held_locks.add(file)
    try:
        yield
    finally:
        _held_locks.discard(file)
        lock.unlink(missing_ok=True)
        os.close(file)


def leave_locks_to_parent() -> None:
    """In a forked process: let go of the rights to write that it has inherited, which then end with its parent."""
    for file in _held_locks:
        os.close(file)
    _held_locks.clear()


def _open_locked(lock: Path, path: Path) -> int:
    while True:
        file = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(lock) and os.path.samestat(os.stat(lock), os.fstat(file)):
                return file
        except BlockingIOError:
            os.close(file)
            raise UserError(
                f"expected to write {path} alone, got another run that is writing it; wait for that run or name another"
            ) from None
        os.close(file)  # the former holder has removed this file meanwhile


def check_file_output(path: Path | str, endings: Collection[str] = ()) -> None:
    """Check before work begins that a file can be written.

    Args:
        path: of the file.
        endings: the suffixes it may have, in lower case with their dot; any if empty.

    Raises:
        UserError: it is a folder, has another suffix, or its folder cannot be written.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise UserError(
            f"expected {path} to end in {' or '.join(endings)}, got {path.suffix or 'no ending'}; rename it"
        )
    with os_errors_for_user(path):
        if path.is_dir():
            raise UserError(f"expected {path} to be a file, got a folder; name a file in it")
        if path.exists() and not path.is_file():
            return  # a device or a pipe
        check_folder_output(path.parent, path)
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"cannot write {path}: it is write-protected; choose a writable path")


def check_folder_output(folder: Path | str, shown: Path | str = "") -> None:
    """Check before work begins that files can be made in a folder, or in the one that it will be created in.

    Args:
        folder: to write to.
        shown: path to name in the message instead.

    Raises:
        UserError: they cannot.
    """
    with os_errors_for_user(Path(shown or folder)):
        folder = Path(folder).absolute()
        present = next(path for path in (folder, *folder.parents) if _is_there(path))
        with tempfile.TemporaryFile(dir=present):
            pass


def _is_there(path: Path) -> bool:
    """Whether there is something, be it a broken link; an OSError for a name that nothing can have."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def file_digest(*paths: Path | str, length: int | None = None) -> str:
    """Hash (BLAKE2b, 32 hexadecimal digits) of the contents of files, one after the other, read piece by piece.

    Args:
        *paths: of the files.
        length: number of bytes that count in each file, from its start; None for all.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        left = sys.maxsize if length is None else length
        with Path(path).open("rb") as file:
            while block := file.read(min(READ_BYTES, left)):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def values_digest(values: Any) -> str:
    """Hash (BLAKE2b, 32 hexadecimal digits) of JSON values; the order of keys does not count."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def flush_to_disk(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def os_errors_for_user(path: Path | str) -> Iterator[None]:
    """Turn errors of the operating system in the block into one line about the path that was to be written.

    Raises:
        UserError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        advice = "make space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a writable path"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
