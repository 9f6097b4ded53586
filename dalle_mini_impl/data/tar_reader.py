"""Reads WebDataset tars: members with the same name and different endings make one sample.

All headers of a tar are read first, so the members of a sample need not be neighbours, and a damaged header makes one
sample unusable instead of the rest of the tar. Nothing is unpacked to disk by its name, and links are not followed.
"""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from dalle_mini_impl.data.languages import language_of_name
from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.parts import PendingSample
from dalle_mini_impl.data.remote import SourcePath
from dalle_mini_impl.data.sample import (
    MAX_CAPTION_BYTES,
    MAX_JSON_BYTES,
    UnusableSample,
    make_pair,
    may_be_read_later,
    read_captions,
)
from dalle_mini_impl.data.tar_file import TarFileObject, open_tar
from dalle_mini_impl.util.images import is_drawing, picture_kind, unreadable_format
from dalle_mini_impl.util.read_files import MAX_PICTURE_BYTES

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File name endings of tars, in lower case. Whether a tar is compressed follows from its first bytes."""
PICTURE_NAMES = (".img", ".image")
"""Endings that some writers of tars give to pictures of any format."""
CAPTION_ENDINGS = (".txt", ".text", ".caption", ".cap")
"""Endings of members with one caption per line; of several kinds in a sample the first counts."""
PARTS_LISTED = 8
"""Most endings of a sample that a message lists."""
TAR_ERRORS = (
    tarfile.TarError, OSError, EOFError, ValueError, LookupError, ArithmeticError, MemoryError, RecursionError,
)  # fmt: skip
"""What tarfile raises on damaged archives."""
Members = dict[str, tarfile.TarInfo]
"""Ending in lower case, with its dot -> member of the tar, for one sample."""


def is_tar(path: SourcePath) -> bool:
    """Whether a file is a tar by its name."""
    return path.name.lower().endswith(TAR_ENDINGS)


def tar_samples(tar: SourcePath, log: SkipLog, tar_log: SkipLog, needed: bool) -> Iterator[PendingSample]:
    """The samples of a tar, which can be read until the next one is asked for.

    Args:
        tar: the archive.
        log: receives, while samples are read, what was left out of them.
        tar_log: receives faults of the tar.
        needed: whether pictures without a caption are skipped.
    """
    with ExitStack() as opened:
        try:
            archive, samples = opened.enter_context(_open_samples(tar, tar_log))
        except TAR_ERRORS as error:
            tar_log.add(str(tar), f"unreadable tar: {error}", may_be_read_later=may_be_read_later(error))
            return
        for key, members in samples.items():
            name = f"{tar}:{key}"
            yield name, _tar_sample(archive, name, key, members, log, needed)


@dataclass(frozen=True, order=True)
class TarMember:
    """A picture in a tar."""

    tar: SourcePath
    member: str

    def __str__(self) -> str:
        return f"{self.tar}:{self.member}"

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.member.rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """The picture's bytes, for which the list of all members is read.

        Raises:
            UnusableSample: it cannot be read, or is not there any more.
        """
        for member, _, read in tar_pictures(self.tar, SkipLog()):
            if member == self:
                return read()
        raise UnusableSample(f"missing tar member: {self}")


def tar_pictures(tar: SourcePath, log: SkipLog) -> Iterator[tuple[TarMember, int, Callable[[], bytes]]]:
    """The pictures of a tar, each with its size in bytes and what reads it until the next one is asked for.

    Args:
        tar: the archive.
        log: receives faults of the tar, and samples without a picture that can be read.

    Raises:
        UnusableSample: the tar cannot be read.
    """
    with ExitStack() as opened:
        try:
            archive, samples = opened.enter_context(_open_samples(tar, log))
        except TAR_ERRORS as error:
            raise UnusableSample(f"unreadable tar: {error}", may_be_read_later=may_be_read_later(error)) from error
        for key, members in samples.items():
            try:
                picture = members[_picture_of(members)]
            except UnusableSample as reason:
                log.add(f"{tar}:{key}", str(reason))
                continue
            yield TarMember(tar, picture.name), picture.size, partial(_content, archive, picture, MAX_PICTURE_BYTES)


@contextmanager
def _open_samples(tar: SourcePath, log: SkipLog) -> Iterator[tuple[tarfile.TarFile, dict[str, Members]]]:
    """Open a tar, and list its samples; the log receives faults of the tar.

    Raises:
        TAR_ERRORS: it cannot be read.
    """
    with open_tar(tar, log) as file:
        file.seek(file.skip_zeros(0))
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as archive:
            yield archive, _group(_list_members(archive, file, tar, log), tar, log)


def _list_members(
    archive: tarfile.TarFile, file: TarFileObject, tar: SourcePath, log: SkipLog
) -> list[tarfile.TarInfo]:
    """List the members of a tar, and log gaps between them.

    tarfile skips damaged headers without an error; they show as bytes between members that are not zero.
    """
    members: list[tarfile.TarInfo] = []
    name = str(tar)
    end = 0
    try:
        while (member := archive.next()) is not None:
            if file.skip_zeros(end) < member.offset:
                log.add(name, f"damaged tar: no member can be read at bytes {end} to {member.offset}")
            members.append(member)
            end = archive.offset
            archive.offset = file.skip_zeros(end)  # tarfile itself would take minutes for each GB of zeros
    except TAR_ERRORS as error:
        log.add(name, f"truncated tar: {error}", may_be_read_later=may_be_read_later(error))
        return members
    if file.size <= end:
        log.add(name, "truncated tar: it has no end marker, so members may be missing")
    elif file.skip_zeros(end) < file.size:
        log.add(name, f"damaged tar: no member can be read at bytes {end} to {file.size}")
    return members


def _group(members: list[tarfile.TarInfo], tar: SourcePath, log: SkipLog) -> dict[str, Members]:
    """Group members into samples; hidden ones are left out.

    Members with the same name up to its first dot are one sample, as in WebDataset, unless the rest of their names
    shows that they are several: in `IMG.001.png`, `IMG.001.txt`, `IMG.002.png` … only what follows the last dot is an
    ending.
    """
    names: dict[str, dict[str, Members]] = {}
    for member in members:
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        if member.isdir() or name.startswith("."):
            continue
        stem, _, rest = name.partition(".")
        middle, _, ending = rest.rpartition(".")
        sample = names.setdefault(f"{folder}/{stem}" if folder else stem, {}).setdefault(middle, {})
        where = f"{tar}:{member.name}"
        if not member.isreg() or member.issparse():
            log.add(where, "unreadable tar member: a link, a device or a sparse file")
        elif f".{ending.lower()}" in sample:
            log.add(where, "same name: an earlier member was taken instead")
        else:
            sample[f".{ending.lower()}"] = member
    samples: dict[str, Members] = {}
    for key, parts in names.items():
        samples |= _divide(key, {middle: part for middle, part in parts.items() if part})
    return samples


def _divide(key: str, parts: dict[str, Members]) -> dict[str, Members]:
    """Divide the members of a name into samples.

    Args:
        key: the name up to its first dot.
        parts: what is between the first and the last dot (empty where there is only one) -> members by last ending.
    """
    plain = dict(parts.get("", {}))
    for middle, part in list(parts.items()):
        # A caption named after the whole file of the picture: `a.jpg.txt`.
        if f".{middle.lower()}" in plain and not _pictures(part) and not _captions(plain):
            plain |= {ending: member for ending, member in part.items() if ending in _captions(part)}
            del parts[middle]
    others = {middle: part for middle, part in parts.items() if middle}
    own = {middle: part for middle, part in others.items() if _pictures(part) and _captions(part)}
    if not plain and not own:  # names such as IMG.001.png, all without captions or all without pictures
        own = others
    samples = {key: plain} if plain else {}
    samples |= {f"{key}.{middle}": part for middle, part in own.items()}
    extra = {f".{middle}{e}": m for middle, part in others.items() if middle not in own for e, m in part.items()}
    if plain:
        samples[key] = plain | extra
    return samples


def _pictures(members: Members) -> list[str]:
    """Endings of the pictures among members, those that can be read first, drawings last."""
    kinds = {ending: "readable" if ending in PICTURE_NAMES else picture_kind(f"a{ending}") for ending in members}
    endings = sorted(members, key=is_drawing)
    return [ending for kind in ("readable", "unreadable") for ending in endings if kinds[ending] == kind]


def _captions(members: Members) -> list[str]:
    """Endings of the members that hold captions: those of the first kind with one caption per line, and JSON.

    For each language the first kind counts: `.de.txt` before `.de.caption`.
    """
    lines: dict[str, str] = {}
    for kind in CAPTION_ENDINGS:
        for ending in members:
            stem, language = language_of_name(f"a{ending.removesuffix(kind)}")
            if ending.endswith(kind) and stem == "a":
                lines.setdefault(language, ending)
    return [*dict(sorted(lines.items())).values(), *([".json"] if ".json" in members else [])]


def _picture_of(members: Members) -> str:
    """Ending of a sample's picture.

    Raises:
        UnusableSample: there is none, or several of which none is the picture by its name.
    """
    pictures = _pictures(members)
    shown = ", ".join([*list(members)[:PARTS_LISTED], *["…"] * (len(members) > PARTS_LISTED)])
    plain = [ending for ending in pictures if ending.count(".") == 1]
    if len(plain or pictures) != 1 and not plain:
        if pictures:
            raise UnusableSample(f"no picture: which of {shown} is it? Only one may be a picture, or one has no dot")
        raise UnusableSample(f"no picture: only {shown}")
    ending = (plain or pictures)[0]
    if ending not in PICTURE_NAMES and picture_kind(f"a{ending}") == "unreadable":
        raise UnusableSample(unreadable_format(f"a{ending}"))
    return ending


def _tar_sample(
    archive: tarfile.TarFile, name: str, key: str, members: Members, log: SkipLog, needed: bool
) -> Callable[[], Pair]:
    def read() -> Pair:
        picture = members[_picture_of(members)]
        endings = _captions(members)
        if needed and not endings:
            shown = ", ".join([*list(members)[:PARTS_LISTED], *["…"] * (len(members) > PARTS_LISTED)])
            raise UnusableSample(f"no caption: neither .txt nor .json beside it, only {shown}")
        captions, details = read_captions(
            [
                (
                    language_of_name(f"a{ending}"[: ending.rindex(".") + 1])[1],
                    partial(_content, archive, members[ending], MAX_CAPTION_BYTES),
                )
                for ending in endings
                if ending != ".json"
            ],
            [partial(_content, archive, members[".json"], MAX_JSON_BYTES)] if ".json" in members else [],
            partial(log.note, name),
            needed,
        )
        return make_pair(key, captions, details, partial(_content, archive, picture, MAX_PICTURE_BYTES), needed)

    return read


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    if member.size > limit:
        raise UnusableSample(f"unreadable tar member: {member.size} bytes, more than {limit}")
    try:
        file = archive.extractfile(member)
        content = file.read() if file else b""
    except TAR_ERRORS as error:
        raise UnusableSample(f"unreadable tar member: {error}", may_be_read_later=may_be_read_later(error)) from error
    if len(content) != member.size:
        raise UnusableSample(f"truncated tar member: {len(content)} of {member.size} bytes")
    return content
