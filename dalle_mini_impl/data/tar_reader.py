"""Reads WebDataset tars: members with the same name and different endings make one sample.

All headers of a tar are read first, so the members of a sample need not be neighbours, and a damaged header makes one
sample unusable instead of the rest of the tar.
"""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.data.sample import (
    UnusableSample,
    captions_from_fields,
    captions_from_lines,
    fields_from_json,
    make_pair,
    read_samples,
)
from dalle_mini_impl.util.images import PICTURE_ENDINGS
from dalle_mini_impl.util.text import printable

TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, LookupError)
"""What tarfile raises on damaged archives."""
Members = dict[str, tarfile.TarInfo]
"""Ending in lower case, with its dot -> member of the tar, for one sample."""


def read_tars(tars: list[Path], log: SkipLog, needed: bool, worker: int, workers: int) -> Iterator[Pair]:
    """Read one worker's part: whole tars if there are at least as many as workers, else samples of every tar.

    Args:
        tars: the archives.
        log: receives what was skipped, and why.
        needed: whether pictures without a caption are skipped.
        worker: which part to read, 0 to `workers - 1`.
        workers: number of parts.
    """
    by_tar = len(tars) >= workers
    for number, tar in enumerate(tars):
        is_own = number % workers == worker
        tar_log = log if is_own else SkipLog()  # one worker alone reports on a tar as a whole
        if not by_tar:
            yield from _read_tar(tar, log, tar_log, needed, worker, workers)
        elif is_own:
            yield from _read_tar(tar, log, tar_log, needed, 0, 1)


def _read_tar(tar: Path, log: SkipLog, tar_log: SkipLog, needed: bool, worker: int, workers: int) -> Iterator[Pair]:
    """Read every `workers`-th sample of a tar; `tar_log` receives faults of the tar, `log` those of samples."""
    try:
        with tarfile.open(tar, "r:", ignore_zeros=True) as archive:
            members_of_key = _group(_list_members(archive, tar, tar_log), tar, tar_log)
            samples = [
                (f"{tar}:{key}", _tar_sample(archive, key, members, needed)) for key, members in members_of_key.items()
            ]
            yield from read_samples(samples, log, worker, workers)
    except TAR_ERRORS as error:
        tar_log.add(printable(str(tar)), printable(f"unreadable tar: {error}"))


def _list_members(archive: tarfile.TarFile, tar: Path, log: SkipLog) -> list[tarfile.TarInfo]:
    """List the members of a tar, and log gaps between them.

    tarfile skips damaged headers without an error; they show as bytes between members that are not zero.
    """
    members: list[tarfile.TarInfo] = []
    name = printable(str(tar))
    end = 0
    try:
        while (member := archive.next()) is not None:
            if not _all_zero(tar, end, member.offset):
                log.add(name, f"damaged tar: no member can be read at bytes {end} to {member.offset}")
            members.append(member)
            end = archive.offset
    except TAR_ERRORS as error:
        log.add(name, printable(f"truncated tar: {error}"))
        return members
    size = tar.stat().st_size
    if size <= end:
        log.add(name, "truncated tar: it has no end marker, so members may be missing")
    elif not _all_zero(tar, end, size):
        log.add(name, f"damaged tar: no member can be read at bytes {end} to {size}")
    return members


def _all_zero(path: Path, start: int, stop: int) -> bool:
    """Whether bytes `start` to `stop` of a file are zero; an empty range is."""
    if start >= stop:
        return True
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            block = file.read(min(1 << 20, stop - start))
            if not block:
                return True
            if any(block):
                return False
            start += len(block)
    return True


def _group(members: list[tarfile.TarInfo], tar: Path, log: SkipLog) -> dict[str, Members]:
    """Group members into samples by their name up to its first dot; hidden ones are left out."""
    samples: dict[str, Members] = {}
    for member in members:
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        if member.isdir() or name.startswith("."):
            continue
        stem, dot, ending = name.partition(".")
        sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        where = printable(f"{tar}:{member.name}")
        if not member.isreg():
            log.add(where, "unreadable tar member: a link or device, not a file")
        elif dot + ending.lower() in sample:
            log.add(where, "same name: an earlier member was taken instead")
        else:
            sample[dot + ending.lower()] = member
    return {key: sample for key, sample in samples.items() if sample}


def _tar_sample(archive: tarfile.TarFile, key: str, members: Members, needed: bool) -> Callable[[], Pair]:
    def read() -> Pair:
        picture = next((member for ending, member in members.items() if ending in PICTURE_ENDINGS), None)
        if picture is None:
            raise UnusableSample(f"no picture: only {', '.join(members)}")
        if needed and not members.keys() & {".txt", ".json"}:
            raise UnusableSample("no caption: neither .txt nor .json beside it")
        captions: list[Caption] = []
        details: dict[str, Any] = {}
        if ".txt" in members:
            captions += captions_from_lines(_content(archive, members[".txt"]))
        if ".json" in members:
            more, details = captions_from_fields(fields_from_json(_content(archive, members[".json"])))
            captions += more
        return make_pair(key, captions, details, lambda: _content(archive, picture), needed)

    return read


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(member)
        content = file.read() if file else b""
    except TAR_ERRORS as error:
        raise UnusableSample(f"unreadable tar member: {error}") from error
    if len(content) != member.size:
        raise UnusableSample(f"truncated tar member: {len(content)} of {member.size} bytes")
    return content
