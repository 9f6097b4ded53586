"""Lists the pictures of a folder, or the tars that hold them, here or at an address.

Tells those that are gone from those that cannot be looked at now.
"""

import os
import posixpath
import stat
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import RemotePath, SourcePath, file_states, is_address, source_path
from dalle_mini_impl.data.sample import list_files
from dalle_mini_impl.data.shards import is_folder, shards_of_pattern
from dalle_mini_impl.data.tar_reader import is_tar
from dalle_mini_impl.search.store import PictureFile
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import picture_kind

CLOCK_STEP_NS = 2_000_000_000
"""Longest step between two times that a file system tells apart, in nanoseconds: that of FAT. Others step once in a few
milliseconds, or once a second."""


@dataclass
class Listing:
    """What a folder holds."""

    root: SourcePath
    files: list[PictureFile] = field(default_factory=list)
    are_tars: bool = False
    """Whether the files are tars with pictures in them."""
    unlisted: set[bytes] = field(default_factory=set)
    """Folders, relative to the root (`b""`), whose content could not be listed."""
    mounts: set[bytes] = field(default_factory=set)
    """Folders with pictures that are on another file system than the folder above them."""
    unsupported: Counter[str] = field(default_factory=Counter)
    """Number of pictures by the file name endings of formats that cannot be read."""
    _away: dict[bytes, bool | None] = field(default_factory=dict)

    def is_gone(self, path: bytes, former_mounts: Collection[bytes]) -> bool:
        """Whether a picture that is not listed is absent, which only the folder that would hold it can tell.

        Args:
            path: of the picture or tar, relative to the root.
            former_mounts: folders that were on file systems of their own when the pictures were listed before.
        """
        if isinstance(self.root, RemotePath):  # which is listed whole, or not at all
            return True
        folder = os.path.dirname(path)
        folders = [folder]
        while folder:
            folder = os.path.dirname(folder)
            folders.append(folder)
        for folder in reversed(folders):
            if folder not in self._away:
                self._away[folder] = self._is_away(folder, former_mounts)
            away = self._away[folder]
            if away is not None:
                return not away
        return True

    def _is_away(self, folder: bytes, former_mounts: Collection[bytes]) -> bool | None:
        """Whether a folder is there but cannot be looked at; False if it is absent, None if it can be looked at."""
        path = os.path.join(os.fsencode(str(self.root)), folder)
        if folder in self.unlisted:
            return True
        if folder in former_mounts and folder not in self.mounts and not self._has_files(folder):
            return True
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return os.path.islink(path)  # a link that leads nowhere: its target may come back
        except OSError:
            return True
        return False if not os.path.isdir(path) and not is_link else None

    def _has_files(self, folder: bytes) -> bool:
        return any(file.path.startswith(folder + b"/") for file in self.files)


def check_source(source: str | Path) -> None:
    """Check before work begins that pictures can be listed; a folder is not read.

    Raises:
        UserError: as `list_source`.
    """
    with _listing_errors(source):
        if not is_folder(_path_of(source)):
            _tars_named(source)


def list_source(source: str | Path, log: SkipLog) -> Listing:
    """The pictures of a folder, or else the tars directly in it; or the tars that a path or pattern names.

    Args:
        source: here or at an address.
        log: records folders that cannot be listed, and missing tars.

    Raises:
        UserError: it is neither a folder nor tars, or cannot be looked at.
    """
    path = _path_of(source)
    with _listing_errors(source):
        if not is_folder(path):
            return _list_tars(_tars_named(source), log)
        listing = list_pictures(path, log)
        if listing.files or listing.unlisted:
            return listing
        tars = sorted(file for file in path.iterdir() if is_tar(file) and not file.name.startswith("."))
        return replace(_list_tars(tars, log, path), unsupported=listing.unsupported) if tars else listing


def _path_of(source: str | Path) -> SourcePath:
    return source_path(source) if is_address(source) else Path(source).resolve()


@contextmanager
def _listing_errors(source: str | Path) -> Iterator[None]:
    """Turn errors of the system in the block into one line about the source."""
    try:
        yield
    except OSError as error:
        advice = "the address, the connection and your credentials" if is_address(source) else "its permissions"
        raise UserError(f"{source} cannot be read ({error.strerror or error}); check {advice}") from error


def _tars_named(source: str | Path) -> list[SourcePath]:
    try:
        tars = shards_of_pattern(str(source))
    except UserError:
        tars = []
    if not tars or not all(map(is_tar, tars)):
        raise UserError(f"expected a folder of pictures, or tars, got {source}; check the path")
    return tars


def _list_tars(tars: Sequence[SourcePath], log: SkipLog, root: SourcePath | None = None) -> Listing:
    """Tars, and their states; by default the root is the folder that holds all of them."""
    states: dict[str, PictureFile | None] = {}
    if remote := [tar for tar in tars if isinstance(tar, RemotePath)]:
        address = root if isinstance(root, RemotePath) else _common_folder(remote)
        for tar, state in file_states(remote).items():
            name = os.fsencode(str(tar.relative_to(address)))
            states[str(tar)] = PictureFile(name, state[1] or None, state[0]) if state else None
        root = address
    else:
        local = [Path(os.path.abspath(str(tar))) for tar in tars]
        folder = root if isinstance(root, Path) else Path(os.path.commonpath([path.parent for path in local]))
        for path in local:
            states[str(path)] = None
            with suppress(FileNotFoundError):
                status, name = path.stat(), os.fsencode(path.relative_to(folder))
                states[str(path)] = PictureFile(name, _settled_time(status.st_mtime_ns), status.st_size)
        root = folder
    for path_or_address, file in states.items():
        if file is None:  # one of those that braces stand for
            log.add(path_or_address, "missing tar: there is no such file")
    listing = Listing(root, [file for file in states.values() if file], are_tars=True)
    if isinstance(root, Path):
        listing.mounts = _mounts(root, {os.path.dirname(file.path) for file in listing.files})
    return listing


def _common_folder(paths: Sequence[RemotePath]) -> RemotePath:
    protocol = f"{paths[0].address.partition('://')[0]}://"
    return RemotePath(protocol + posixpath.commonpath([str(path.parent).removeprefix(protocol) for path in paths]))


def list_pictures(root: SourcePath, log: SkipLog) -> Listing:
    """All picture files below a folder, recognised by their suffixes; links are followed.

    Args:
        root: the folder.
        log: records folders that cannot be listed.

    Raises:
        UserError: it is at an address, and cannot be listed.
    """
    listing = Listing(root)
    if isinstance(root, RemotePath):
        _list_remote(root, listing)
        return listing
    unlisted: list[Path] = []
    for path in list_files(root, log, unlisted):
        kind = picture_kind(path)
        if kind == "unreadable":
            listing.unsupported[path.suffix.lower()] += 1
        elif kind == "readable":
            name = os.fsencode(path.relative_to(root))
            try:
                status = path.stat()
            except OSError:  # a broken link, or no access; reading it will report that
                listing.files.append(PictureFile(name, None, 0))
            else:
                listing.files.append(PictureFile(name, _settled_time(status.st_mtime_ns), status.st_size))
    listing.unlisted = {os.fsencode(os.path.relpath(folder, root)) for folder in unlisted}
    if b"." in listing.unlisted:
        listing.unlisted.add(b"")
    listing.mounts = _mounts(root, {os.path.dirname(file.path) for file in listing.files})
    return listing


def _list_remote(root: RemotePath, listing: Listing) -> None:
    """Add the picture files below a folder at an address; what tells of their content stands for their times."""
    try:
        states = root.list_states(recursive=True)
    except OSError as error:
        raise UserError(
            f"{root} cannot be listed ({error.strerror or error}); check the address, the connection and your "
            f"credentials"
        ) from error
    for path, (size, stamp) in states.items():
        kind = picture_kind(path.name)
        if kind == "unreadable":
            listing.unsupported[path.suffix.lower()] += 1
        elif kind == "readable":
            listing.files.append(PictureFile(os.fsencode(str(path.relative_to(root))), stamp or None, size))


def _settled_time(mtime_ns: int) -> int | None:
    """A file's modification time, or None if it is not older than now by a step of the file system's clock.

    The file may then be written once more without a change of its time, and time and size could not tell that it has
    changed since it was read.
    """
    return None if abs(time.time_ns() - mtime_ns) <= CLOCK_STEP_NS else mtime_ns


def _mounts(root: Path, folders: Collection[bytes]) -> set[bytes]:
    """Those of some folders, and of the folders above them, that are on another file system than the one above."""
    with_parents = set()
    for folder in folders:
        while folder and folder not in with_parents:
            with_parents.add(folder)
            folder = os.path.dirname(folder)
    base = os.fsencode(root)
    mounts = set()
    for folder in with_parents:
        try:
            device = os.stat(os.path.join(base, folder)).st_dev
            if device != os.stat(os.path.join(base, os.path.dirname(folder))).st_dev:
                mounts.add(folder)
        except OSError:  # it vanished since it was listed
            continue
    return mounts
