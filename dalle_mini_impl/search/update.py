"""Update of an index from its folder: new and changed files are read and embedded, missing ones removed."""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import RemotePath, SourcePath
from dalle_mini_impl.scorer.picture_files import EmbeddedPicture
from dalle_mini_impl.search.embedding import Embed, PictureShare, ShareEnd, file_path, has_changed, shares_of
from dalle_mini_impl.search.listing import Listing
from dalle_mini_impl.search.store import IN_TAR, IndexEntry, IndexFiles, PictureFile, free_rows
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable


@dataclass(frozen=True)
class Changes:
    """Numbers of pictures by what an update did with them."""

    unchanged: int
    """Not read, as time and size have not changed, or read again and of the same content."""
    embedded: int
    """New contents."""
    reused: int
    """Read, but not embedded: moved or copied files whose content was in the index already."""
    unreadable: int
    """All pictures that cannot be used, those of earlier updates included."""
    removed: int
    """No longer in the folder."""
    kept: int = 0
    """Could not be looked at: in a folder that cannot be listed, on a drive that is away, without permission."""
    restored: int = 0
    """Embedded again, because their vectors were lost or damaged."""
    lost: int = 0
    """Vectors still lost, because their pictures could not be read."""
    unsupported: Mapping[str, int] = field(default_factory=dict)
    """Number of pictures by the file name endings of formats that cannot be read."""


def update_index(index: IndexFiles, embed: Embed, listing: Listing, log: SkipLog) -> Changes:
    """Update an index from its folder. Work is committed in batches, which a later run does not repeat.

    Args:
        index: its files; no other process may write them.
        embed: embeds the pictures.
        listing: of the folder.
        log: records every picture that cannot be read, those of earlier updates included.
    """
    _repair(index)
    former_mounts = _read_mounts(index)
    _write_folders(index, listing, former_mounts | listing.mounts)  # now, because this run may be killed
    before = index.files()
    members = _members_of_tars(before)
    rows = index.contents()
    lost = index.contents(lost=True)
    changed = _changed(index, listing, before, members)
    free = free_rows(rows | lost)
    counts = {"embedded": 0, "restored": 0, "failed": 0, "kept": 0, "same": 0}
    read: set[bytes] = set()
    closed: set[bytes] = set()  # pictures in tars that cannot be read now
    total = None if listing.are_tars else len(changed)
    with tqdm(total=total, unit=" pictures", disable=None, leave=False) as bar:
        for share, items in embed(shares_of(listing.root, changed, are_tars=listing.are_tars), rows):
            for item in items:
                if isinstance(item, ShareEnd):
                    log.merge(item.log)
                    if share.is_tar:
                        closed |= _end_tar(index, share, item, members, read)
                else:
                    _record(index, listing.root, item, before, rows, lost, free, counts)
                    read.update(picture.item.path for picture in item)
                    bar.update(len(item))
    listed = {file.path for file in listing.files}
    unread = set().union(*(members.get(path, ()) for path in listed)) if listing.are_tars else listed
    missing = sorted(before.keys() - read - unread)
    removed = [path for path in missing if listing.is_gone(path.partition(IN_TAR)[0], former_mounts)]
    index.remove(removed)
    index.forget_tars(_members_of_tars(removed).keys() - listed)
    kept = set(missing) - set(removed) | closed
    away = {mount for mount in former_mounts if any(path.startswith(mount + b"/") for path in kept)}
    _write_folders(index, listing, listing.mounts | away)
    unreadable = index.unreadable()
    for path, reason in unreadable:
        log.add(printable(os.fsdecode(path.replace(IN_TAR, b":"))), printable(reason))
    old_failures = len(set(dict(unreadable)) - read - kept)
    return Changes(
        unchanged=len(unread - read - closed) - old_failures + counts["same"],
        embedded=counts["embedded"],
        reused=len(read) - sum(counts.values()),
        unreadable=len(unreadable),
        removed=len(removed),
        kept=counts["kept"] + len(kept),
        restored=counts["restored"],
        lost=len(index.contents(lost=True)),
        unsupported=dict(listing.unsupported),
    )


def _changed(
    index: IndexFiles,
    listing: Listing,
    before: Mapping[bytes, tuple[int | None, int, int | None]],
    members: Mapping[bytes, Collection[bytes]],
) -> list[PictureFile]:
    """The files that are to be read: a tar also if one of its pictures is to be read again."""
    if not listing.are_tars:
        return [
            file
            for file in listing.files
            if file.mtime_ns is None or before.get(file.path, (None, 0, None))[:2] != (file.mtime_ns, file.size)
        ]
    states = index.tar_states()
    return [
        tar
        for tar in listing.files
        if tar.mtime_ns is None
        or states.get(tar.path) != (tar.mtime_ns, tar.size)
        or any(before[path][0] is None for path in members.get(tar.path, ()))
    ]


def _members_of_tars(paths: Iterable[bytes]) -> dict[bytes, set[bytes]]:
    """The pictures in each tar among those of an index."""
    members: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for path in paths:
        tar, in_tar, _ = path.partition(IN_TAR)
        if in_tar:
            members[tar].add(path)
    return members


def _end_tar(
    index: IndexFiles, share: PictureShare, end: ShareEnd, members: dict[bytes, set[bytes]], read: Collection[bytes]
) -> set[bytes]:
    """Record that a tar was read to its end: pictures that it has no more are missing then.

    Returns:
        Its pictures, if it could not be read.
    """
    (tar,) = share.files
    if not end.is_whole:
        return {path for path in members.get(tar.path, ()) if path not in read}
    members[tar.path] = {path for path in members.get(tar.path, ()) if path in read}
    if tar.mtime_ns is not None and not has_changed(file_path(share.root, tar), tar):
        index.set_tar_state(tar.path, (tar.mtime_ns, tar.size))
    return set()


def check_still_tars(index: IndexFiles, listing: Listing) -> None:
    """Refuse to index a picture that was put beside the tars of an index: their pictures would be removed.

    Raises:
        UserError: naming it.
    """
    if listing.are_tars or not listing.files:
        return
    if any((listing.root / os.fsdecode(tar)).exists() for tar in index.tar_states()):
        raise UserError(
            f"expected only tars in {listing.root}, whose pictures the index has, got "
            f"{printable(os.fsdecode(listing.files[0].path))} beside them; move it away, or index pictures instead of "
            f"tars with --rebuild"
        )


def check_has_pictures(listing: Listing) -> None:
    """Refuse a folder without pictures, such as that of a disk that is not mounted.

    Raises:
        UserError: the folder holds no pictures at all, or could not be listed.
    """
    if listing.files:
        return
    if listing.unsupported:
        endings = ", ".join(sorted(listing.unsupported))
        raise UserError(f"expected pictures in {listing.root}, got only {endings}, which cannot be read; convert them")
    if listing.unlisted:
        raise UserError(
            f"expected pictures in {listing.root}, got folders that cannot be listed; check their permissions and "
            f"whether their drive is there"
        )
    raise UserError(
        f"expected pictures in {listing.root}, got none; give a folder with PNG, JPEG or other picture files"
    )


def _record(
    index: IndexFiles,
    root: SourcePath,
    batch: list[EmbeddedPicture[PictureFile]],
    before: Mapping[bytes, tuple[int | None, int, int | None]],
    rows: dict[bytes, int],
    lost: dict[bytes, int],
    free: Iterator[int],
    counts: dict[str, int],
) -> None:
    """Commit one batch, and count what was done."""
    entries = []
    vectors = {}
    for picture in batch:
        file = picture.item
        row_before = before.get(file.path, (None, 0, None))[2]
        if not picture.digest:
            # Repaired permissions and links change neither time nor size, so the next update tries again.
            if row_before is not None and IN_TAR not in file.path:
                counts["kept"] += 1
            else:
                entries.append(IndexEntry(replace(file, mtime_ns=None), reason=picture.reason))
                counts["failed"] += 1
            continue
        if IN_TAR not in file.path and has_changed(file_path(root, file), file):
            file = replace(file, mtime_ns=None)
        if picture.reason:
            entries.append(IndexEntry(file, reason=picture.reason))
            counts["failed"] += 1
            continue
        entries.append(IndexEntry(file, picture.digest))
        if picture.embedding is not None and picture.digest not in rows:
            vectors[picture.digest] = picture.embedding
            counts["restored" if picture.digest in lost else "embedded"] += 1
            row = lost.pop(picture.digest, None)
            rows[picture.digest] = next(free) if row is None else row
        elif row_before == rows[picture.digest]:
            counts["same"] += 1
    index.add(entries, vectors, rows)


def _repair(index: IndexFiles) -> None:
    """Have the pictures whose vectors are lost or damaged read again."""
    damaged = index.vectors().damaged
    if damaged or index.is_old:
        index.mark_lost(damaged)


def _read_mounts(index: IndexFiles) -> set[bytes]:
    mounts = json.loads(index.metadata("mounts") or "[]")
    return {os.fsencode(mount) for mount in mounts if isinstance(mount, str)} if isinstance(mounts, list) else set()


def _write_folders(index: IndexFiles, listing: Listing, mounts: set[bytes]) -> None:
    names = json.dumps(sorted(map(os.fsdecode, mounts)))
    is_remote = isinstance(listing.root, RemotePath)
    root = str(listing.root) if is_remote else os.path.relpath(str(listing.root), index.folder.resolve())
    index.set_metadata({"root": root, "absolute_root": str(listing.root), "mounts": names})
