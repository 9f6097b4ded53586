"""Files at addresses such as `s3://bucket/set/00000.tar`, read through fsspec.

A request that fails is repeated after waits that grow, and a transfer that breaks off goes on where it stopped.
"""

import errno
import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import sleep
from typing import Any, BinaryIO, TypeVar

from dalle_mini_impl.util import read_files
from dalle_mini_impl.util.errors import UserError, need_extra

T = TypeVar("T")

ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*::)*([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
"""How addresses begin; the group is the protocol."""
WEB = ("http", "https")
"""Protocols in whose addresses a question mark is no wildcard."""
PACKAGES = {
    "http": ("aiohttp", "remote"), "https": ("aiohttp", "remote"), "s3": ("s3fs", "remote"), "s3a": ("s3fs", "remote"),
    "hf": ("huggingface_hub", "hub"),
}  # fmt: skip
"""Protocol -> the package that fsspec needs for it, and the extra that has it."""
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each repetition of a request that fails."""
REPEATED_STATUSES = (408, 425, 429)
"""Answers of web servers below 500 that may be others a little later."""
BLOCK_BYTES = 1 << 24
"""Bytes asked for at once."""
REQUESTS_AT_ONCE = 16
"""Files whose state is looked up at the same time."""
STAMPS = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "Last-Modified", "last_modified", "mtime", "created")
"""What file systems tell of a file that changes with its content; the first that there is counts."""


def is_address(source: str | Path) -> bool:
    """Whether a source is an address, as opposed to a path of this machine."""
    return ADDRESS.match(str(source)) is not None


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file, a folder or a pattern at an address; has of `pathlib.Path` what the readers need."""

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> "RemotePath":
        protocol, _, place = self.address.partition("://")
        name = name.lstrip("/")
        return RemotePath(f"{protocol}://{posixpath.normpath(f'{place}/{name}' if place else name)}")

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server."""
        return ADDRESS.match(self.address)[1].lower() in WEB  # type: ignore[index]

    @property
    def is_pattern(self) -> bool:
        """Whether wildcards or braces stand in it."""
        return any(letter in self.address for letter in ("*[{" if self.is_web else "*[{?"))

    @property
    def name(self) -> str:
        """The part after the last slash, without the query of a web address."""
        return self._plain.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        protocol, _, place = self._plain.partition("://")
        return RemotePath(f"{protocol}://{posixpath.dirname(place)}")

    @property
    def _plain(self) -> str:
        return self.address.partition("?")[0] if self.is_web else self.address

    def relative_to(self, folder: "RemotePath") -> PurePosixPath:
        """The path within a folder that it lies in."""
        return PurePosixPath(self.address.removeprefix(folder.address).lstrip("/"))

    def is_dir(self) -> bool:
        """Whether it is a folder; on a web server, whether the server lists any file there.

        Raises:
            OSError: that cannot be found out.
        """
        if self.is_pattern:
            return False
        if self.is_web:
            return bool(self.list_states())
        try:
            return bool(self._repeat(lambda files, path: files.info(path))["type"] == "directory")
        except FileNotFoundError:
            return False

    def exists(self) -> bool:
        """Whether it is there.

        Raises:
            OSError: that cannot be found out.
        """
        try:
            self.state()
        except FileNotFoundError:
            return False
        return True

    def state(self) -> list[int]:
        """Size in bytes, and a number that changes with the content as far as the file system tells; 0 for unknown.

        Raises:
            OSError: it is missing or cannot be looked at.
        """
        return _state(self._repeat(lambda files, path: files.info(path)))

    def iterdir(self) -> Iterator["RemotePath"]:
        """The files directly in a folder."""
        return iter(self.list_states())

    def list_states(self, *, recursive: bool = False) -> dict["RemotePath", list[int]]:
        """The files of a folder, without hidden ones, with their states, sorted; empty if there is no such folder.

        Args:
            recursive: also of the folders below.

        Raises:
            OSError: it cannot be listed.
        """

        def infos(files: Any, path: str) -> dict[str, dict[str, Any]]:
            files.invalidate_cache()
            if recursive:
                return dict(files.find(path, detail=True))
            return {info["name"]: info for info in files.ls(path, detail=True)}

        try:
            found = self._repeat(infos)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        _, root = file_system(self.address)
        names = {
            name.removeprefix(root).strip("/"): info
            for name, info in found.items()
            if info["type"] != "directory" and name.startswith(root)
        }
        visible = [name for name in sorted(names) if name and not name.startswith(".") and "/." not in name]
        return {self / name: _state(names[name]) for name in visible}

    def glob(self) -> list["RemotePath"]:
        """The files that a pattern without braces matches, sorted.

        Raises:
            OSError: the folders in question cannot be listed.
        """

        def names(files: Any, path: str) -> list[str]:
            return [files.unstrip_protocol(name) for name in files.glob(path)]

        try:
            return sorted(map(RemotePath, self._repeat(names)))
        except FileNotFoundError:
            return []

    def open(self) -> Any:
        """Open a file to read small parts of it. Nothing that fails is repeated.

        Raises:
            Exception: of any kind.
        """
        files, path = file_system(self.address)
        return files.open(path, "rb")

    def blocks(self) -> Iterator[bytes]:
        """The content of a file, in blocks of any size.

        Raises:
            OSError: it is missing or cannot be read.
        """
        done = failures = 0
        while True:
            try:
                with _open_at(self, done) as file:
                    while block := file.read(BLOCK_BYTES):
                        done += len(block)
                        failures = 0
                        yield block
                    size = getattr(file, "size", None)
                if size is not None and done < size:
                    raise OSError(f"the transfer ended after {done} of {size} bytes")
                return
            except Exception as error:
                _wait_or_raise(self, error, failures)
            failures += 1

    def read_bytes(self, limit: int) -> bytes:
        """The content of a file of at most `limit` bytes.

        Raises:
            OSError: it is missing or cannot be read.
            UserError: it is larger.
        """
        content = bytearray()
        for block in self.blocks():
            content += block
            if len(content) > limit:
                raise UserError(f"expected {self} to have at most {limit} bytes, got more; name another")
        return bytes(content)

    def read_start(self, count: int) -> bytes:
        """The first `count` bytes of a file, or all that it has.

        Raises:
            OSError: it is missing or cannot be read.
        """
        content = bytearray()
        for block in self.blocks():
            content += block
            if len(content) >= count:
                break
        return bytes(content[:count])

    def _repeat(self, request: Callable[[Any, str], T]) -> T:
        failures = 0
        while True:
            try:
                return request(*file_system(self.address))
            except Exception as error:
                _wait_or_raise(self, error, failures)
            failures += 1


SourcePath = Path | RemotePath
"""A file or folder of a source, here or at an address."""


def source_path(source: str | Path) -> SourcePath:
    """The path that a source names.

    Raises:
        UserError: it is an address of an unknown protocol, or of one whose package is not installed.
    """
    if not is_address(source):
        return Path(source).expanduser()
    address = str(source)
    file_system(address)
    return RemotePath(address if address.endswith("://") else address.rstrip("/"))


def open_source(path: SourcePath) -> BinaryIO:
    """Open a file to read it at any place; a remote one is first copied into a temporary file without a name.

    Raises:
        UserError: it is a folder, a pipe or a device.
        OSError: it is missing or cannot be read, or there is no space for the copy.
    """
    if isinstance(path, Path):
        return read_files.open_regular(path)
    copy = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    try:
        for block in path.blocks():
            copy.write(block)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy  # type: ignore[return-value]


def file_system(address: str) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path in it.

    It is asked for at each use, because one that was made before a fork may not be used after it.

    Raises:
        UserError: the protocol is unknown, or its package is not installed.
    """
    import fsspec

    protocol = ADDRESS.match(address)[1]  # type: ignore[index]
    try:
        return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as error:
        if protocol in PACKAGES:
            raise need_extra(*PACKAGES[protocol]) from error
        raise UserError(f"{address} cannot be read: {error}; install what it names with pip") from error
    except ValueError as error:
        raise UserError(
            f"{address} cannot be read: {error}; expected a path, or an address that fsspec knows, such as s3://, "
            f"https:// or hf://"
        ) from error


def file_states(paths: Sequence[RemotePath]) -> dict[RemotePath, list[int]]:
    """The states of files; an empty list for a missing one.

    Raises:
        OSError: one cannot be looked at.
    """

    def state(path: RemotePath) -> list[int]:
        try:
            return path.state()
        except FileNotFoundError:
            return []

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip(paths, pool.map(state, paths), strict=True))


def _state(info: dict[str, Any]) -> list[int]:
    stamp = next((str(info[name]) for name in STAMPS if info.get(name)), "")
    number = int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=6).digest(), "big") if stamp else 0
    return [info.get("size") or 0, number]


def _open_at(path: RemotePath, start: int) -> Any:
    """Open a file to be read from a byte on, with few bytes asked for in vain."""
    files, inner = file_system(path.address)
    if not path.is_web:
        file = files.open(inner, "rb", block_size=BLOCK_BYTES, cache_type="none")
        file.seek(start)
        return file
    # One request for all that is left is faster than one for each block, and not every server answers those.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    file = files.open(inner, "rb", block_size=0, size=1, headers=headers)  # with a size it is not asked for first
    left = start if start and file.r.status != 206 else 0  # other servers begin anew
    while left and (block := file.read(min(left, BLOCK_BYTES))):
        left -= len(block)
    return file


def _wait_or_raise(path: RemotePath, error: Exception, failures: int) -> None:
    """Wait before a request is repeated, or raise what is final.

    Raises:
        OSError: what happened.
        UserError: the error, if it is one.
    """
    if isinstance(error, UserError):
        raise error
    # fsspec reports whatever a web server says as a missing file, and what happened as its cause.
    happened = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = getattr(happened, "status", None)
    if isinstance(status, int):
        final = 400 <= status < 500 and status not in REPEATED_STATUSES
        missing = status in (404, 410)
    else:
        final = isinstance(happened, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))
        missing = isinstance(happened, FileNotFoundError)
    if not final and failures < len(WAITS):
        sleep(WAITS[failures])
    elif missing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    elif final and isinstance(error, OSError):
        raise error
    else:
        tries = f"; tried {failures + 1} times" if failures else ""
        raise OSError(f"{type(happened).__name__}: {happened}{tries}") from error
