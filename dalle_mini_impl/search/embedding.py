"""Embeds the new pictures of an index in shares: files, or a tar. This process does it, or workers of a Ray cluster."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import RemotePath, SourcePath
from dalle_mini_impl.data.sample import UnusableSample
from dalle_mini_impl.data.tar_reader import tar_pictures
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.picture_files import EmbeddedPicture, embed_picture_files
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.store import IN_TAR, PictureFile
from dalle_mini_impl.util.devices import choose_device
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.ray_workers import RayWorkers

FILES_OF_SHARE = 1024
"""Most files of a share."""


@dataclass(frozen=True)
class PictureShare:
    """Files, or one tar, that are embedded together."""

    root: SourcePath
    files: tuple[PictureFile, ...]
    """Pictures, or the tar."""
    is_tar: bool


@dataclass
class ShareEnd:
    """All pictures of a share were embedded."""

    log: SkipLog = field(default_factory=SkipLog)
    """What was skipped of a tar, and why."""
    is_whole: bool = True
    """Whether a tar could be read to its end."""


Embedded: TypeAlias = list[EmbeddedPicture[PictureFile]] | ShareEnd
EmbeddedShares: TypeAlias = Iterator[tuple[PictureShare, Iterator[Embedded]]]
Embed: TypeAlias = Callable[[Sequence[PictureShare], Collection[bytes]], EmbeddedShares]
"""From shares, and digests of contents that need no embedding, to each share and what comes of it, in their order."""


def shares_of(root: SourcePath, files: Sequence[PictureFile], *, are_tars: bool) -> list[PictureShare]:
    """Divide files into shares; each tar is one."""
    size = 1 if are_tars else FILES_OF_SHARE
    return [PictureShare(root, tuple(files[start : start + size]), are_tars) for start in range(0, len(files), size)]


def embed_here(scorer: Scorer) -> Embed:
    """Embedding by this process."""

    def embed(shares: Sequence[PictureShare], known: Collection[bytes]) -> EmbeddedShares:
        for share in shares:
            yield share, embed_share(scorer, share, known)

    return embed


def make_worker(name: str, device: str) -> tuple[Scorer, str]:
    """What a worker of a Ray cluster embeds with: a scorer, by its name, and its identity."""
    scorer = Scorer.from_pretrained(name, choose_device(device))
    return scorer, scorer_identity(scorer)


def embed_on_ray(scorer: Scorer, workers: RayWorkers[tuple[Scorer, str]]) -> Embed:
    """Embedding by the workers of a Ray cluster, which must have the same scorer; see `make_worker`."""

    def embed(shares: Sequence[PictureShare], known: Collection[bytes]) -> EmbeddedShares:
        # What is known already is embedded too, and not used: the digests of a large index are not sent around.
        results = workers.map(partial(embed_on_worker, scorer_identity(scorer)), shares, in_order=True)
        for share, embedded in zip(shares, results, strict=True):
            yield share, iter(embedded)

    return embed


def embed_on_worker(identity: str, own: tuple[Scorer, str], share: PictureShare) -> list[Embedded]:
    """What comes of a share.

    Raises:
        UserError: the scorer of this machine is another one.
    """
    scorer, own_identity = own
    if own_identity != identity:
        raise UserError(
            f"expected scorer {identity} on every machine, got {own_identity} on one; install the same version and "
            f"weights"
        )
    return [
        item if isinstance(item, ShareEnd) else [_alone(picture) for picture in item]
        for item in embed_share(scorer, share, ())
    ]


def _alone(picture: EmbeddedPicture[PictureFile]) -> EmbeddedPicture[PictureFile]:
    """A picture whose embedding does not bring those of its batch along where it is sent."""
    return picture if picture.embedding is None else replace(picture, embedding=picture.embedding.clone())


def embed_share(scorer: Scorer, share: PictureShare, known: Collection[bytes]) -> Iterator[Embedded]:
    """What comes of a share: batches of pictures, then its end."""
    end = ShareEnd()
    if not share.is_tar:
        yield from embed_picture_files(scorer, share.files, lambda file: file_path(share.root, file), known)
        yield end
        return
    (tar,) = share.files
    path = file_path(share.root, tar)
    contents: dict[bytes, bytes | UnusableSample] = {}

    def members() -> Iterator[PictureFile]:
        for member, size, read in tar_pictures(path, end.log):
            name = tar.path + IN_TAR + os.fsencode(member.member)
            try:
                contents[name] = read()
            except UnusableSample as reason:
                contents[name] = reason
            yield PictureFile(name, tar.mtime_ns, size)

    def content_of(file: PictureFile) -> bytes:
        content = contents.pop(file.path)
        if isinstance(content, UnusableSample):
            raise content
        return content

    try:
        yield from embed_picture_files(scorer, members(), content_of, known)
        end.is_whole = not end.log.may_be_read_later  # or what its disk did not give would count as gone
    except UnusableSample as reason:
        end.log.add(str(path), str(reason))
        end.is_whole = False
    yield end


def file_path(root: SourcePath, file: PictureFile) -> SourcePath:
    """The path of a file in the indexed folder."""
    return root / os.fsdecode(file.path)


def has_changed(path: SourcePath, file: PictureFile) -> bool:
    """Whether a file was written between its listing and now, so that what was read may belong to another time."""
    if isinstance(path, RemotePath):  # what was written meanwhile has another state in the next listing
        return False
    try:
        status = path.stat()
    except OSError:
        return True
    return (status.st_mtime_ns, status.st_size) != (file.mtime_ns, file.size)
