"""Update of an index from its folder: new and changed files are read and embedded, missing ones removed."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import RemotePath, SourcePath
from dalle_mini_impl.scorer.picture_files import EmbeddedPicture, embed_picture_files
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.listing import Listing
from dalle_mini_impl.search.store import IndexEntry, IndexFiles, PictureFile, free_rows
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


def update_index(index: IndexFiles, scorer: Scorer, listing: Listing, log: SkipLog) -> Changes:
    """Update an index from its folder. Work is committed in batches, which a later run does not repeat.

    Args:
        index: its files; no other process may write them.
        scorer: embeds the pictures.
        listing: of the folder.
        log: records every picture that cannot be read, those of earlier updates included.
    """
    _repair(index)
    former_mounts = _read_mounts(index)
    _write_folders(index, listing, former_mounts | listing.mounts)  # now, because this run may be killed
    before = index.files()
    rows = index.contents()
    lost = index.contents(lost=True)
    changed = [
        file
        for file in listing.files
        if file.mtime_ns is None or before.get(file.path, (None, 0, None))[:2] != (file.mtime_ns, file.size)
    ]
    free = free_rows(rows | lost)
    counts = {"embedded": 0, "restored": 0, "failed": 0, "kept": 0, "same": 0}
    with tqdm(total=len(changed), unit=" pictures", disable=None, leave=False) as bar:
        for batch in embed_picture_files(scorer, changed, lambda file: _path(listing.root, file), rows):
            _record(index, listing.root, batch, before, rows, lost, free, counts)
            bar.update(len(batch))
    missing = sorted(before.keys() - {file.path for file in listing.files})
    removed = [path for path in missing if listing.is_gone(path, former_mounts)]
    index.remove(removed)
    kept = set(missing) - set(removed)
    away = {mount for mount in former_mounts if any(path.startswith(mount + b"/") for path in kept)}
    _write_folders(index, listing, listing.mounts | away)
    unreadable = index.unreadable()
    for path, reason in unreadable:
        log.add(printable(os.fsdecode(path)), printable(reason))
    old_failures = len(set(dict(unreadable)) - {file.path for file in changed} - kept)
    return Changes(
        unchanged=len(listing.files) - len(changed) - old_failures + counts["same"],
        embedded=counts["embedded"],
        reused=len(changed) - sum(counts.values()),
        unreadable=len(unreadable),
        removed=len(removed),
        kept=counts["kept"] + len(kept),
        restored=counts["restored"],
        lost=len(index.contents(lost=True)),
        unsupported=dict(listing.unsupported),
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
            if row_before is not None:
                counts["kept"] += 1
            else:
                entries.append(IndexEntry(replace(file, mtime_ns=None), reason=picture.reason))
                counts["failed"] += 1
            continue
        if _has_changed(root, file):
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


def _has_changed(root: SourcePath, file: PictureFile) -> bool:
    """Whether a file was written between its listing and now, so that what was read may belong to another time."""
    path = _path(root, file)
    if isinstance(path, RemotePath):  # what was written meanwhile has another state in the next listing
        return False
    try:
        status = path.stat()
    except OSError:
        return True
    return (status.st_mtime_ns, status.st_size) != (file.mtime_ns, file.size)


def _read_mounts(index: IndexFiles) -> set[bytes]:
    mounts = json.loads(index.metadata("mounts") or "[]")
    return {os.fsencode(mount) for mount in mounts if isinstance(mount, str)} if isinstance(mounts, list) else set()


def _write_folders(index: IndexFiles, listing: Listing, mounts: set[bytes]) -> None:
    names = json.dumps(sorted(map(os.fsdecode, mounts)))
    is_remote = isinstance(listing.root, RemotePath)
    root = str(listing.root) if is_remote else os.path.relpath(str(listing.root), index.folder.resolve())
    index.set_metadata({"root": root, "absolute_root": str(listing.root), "mounts": names})


def _path(root: SourcePath, file: PictureFile) -> SourcePath:
    return root / os.fsdecode(file.path)
