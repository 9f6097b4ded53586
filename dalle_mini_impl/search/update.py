"""Update of an index from its folder: new and changed files are read and embedded, missing ones removed."""

import hashlib
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.sample import UnusableSample, decode_picture, list_files, read_bytes
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.store import IndexEntry, IndexFiles, PictureFile, free_rows
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS
from dalle_mini_impl.util.text import printable

READERS = min(4, os.cpu_count() or 1)
"""Threads that read and decode files."""
BATCH_FILES = 1024
"""Most files per commit: no more work is lost when a run is stopped."""
BATCH_PIXELS = 2**26
"""Most pixels of decoded pictures per commit, which bounds memory."""

ReadPicture: TypeAlias = tuple[IndexEntry, Image.Image | None]
"""A file that was read, and the decoded picture if it can be used and its content is new."""


@dataclass(frozen=True)
class Changes:
    """Numbers of pictures by what an update did with them."""

    unchanged: int
    """Not read, as time and size have not changed."""
    embedded: int
    """New contents."""
    reused: int
    """Read, but not embedded: moved or copied files whose content was in the index already."""
    unreadable: int
    """All pictures that cannot be used, those of earlier updates included."""
    removed: int
    """No longer in the folder."""


def update_index(index: IndexFiles, scorer: Scorer, root: Path, log: SkipLog) -> Changes:
    """Update an index from its folder. Work is committed in batches, which a later run does not repeat.

    Args:
        index: its files; no other process may write them.
        scorer: embeds the pictures.
        root: the folder.
        log: records every picture and folder that cannot be read, those of earlier updates included.

    Raises:
        UserError: the folder holds no pictures at all; the index is left unchanged.
    """
    files = list_pictures(root, log)
    if not files:
        raise UserError(
            f"expected pictures in {root}, got none; give a folder with files that end in "
            f"{', '.join(sorted(PICTURE_ENDINGS))}"
        )
    index.set_metadata("root", os.path.relpath(root, index.folder.resolve()))
    before = index.files()
    rows = index.contents()
    changed = [file for file in files if file.mtime_ns is None or before.get(file.path) != (file.mtime_ns, file.size)]
    free = free_rows(rows)
    embedded = 0
    failed = 0
    with tqdm(total=len(changed), unit=" pictures", disable=None, leave=False) as bar:
        for batch in batches(read_ahead(root, changed, rows), scorer.chunk_size):
            new = {entry.hash: image for entry, image in batch if image is not None and entry.hash not in rows}
            vectors = dict(zip(new, scorer.embed_images(list(new.values())), strict=True))
            rows.update(zip(new, free, strict=False))
            index.add([entry for entry, _ in batch], vectors, rows)
            embedded += len(new)
            failed += sum(bool(entry.reason) for entry, _ in batch)
            bar.update(len(batch))
    removed = sorted(before.keys() - {file.path for file in files})
    index.remove(removed)
    unreadable = index.unreadable()
    for path, reason in unreadable:
        log.add(printable(os.fsdecode(path)), printable(reason))
    return Changes(
        unchanged=len(files) - len(changed) - (len(unreadable) - failed),
        embedded=embedded,
        reused=len(changed) - embedded - failed,
        unreadable=len(unreadable),
        removed=len(removed),
    )


def list_pictures(root: Path, log: SkipLog) -> list[PictureFile]:
    """All picture files below a folder, recognised by their suffixes."""
    files = []
    for path in list_files(root, log):
        if path.suffix.lower() in PICTURE_ENDINGS:
            name = os.fsencode(path.relative_to(root))
            try:
                status = path.stat()
            except OSError:  # a broken link; reading it will report that
                files.append(PictureFile(name, None, 0))
            else:
                files.append(PictureFile(name, status.st_mtime_ns, status.st_size))
    return files


def read_ahead(root: Path, files: Sequence[PictureFile], known: Collection[bytes]) -> Iterator[ReadPicture]:
    """Read files in order, some of them ahead in threads.

    Args:
        root: the folder.
        files: of the folder.
        known: hashes of contents that need not be decoded; may grow during the iteration.
    """
    started: deque[Future[ReadPicture]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        for file in files:
            started.append(readers.submit(read_picture, root, file, known))
            if len(started) > 2 * READERS:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()


def read_picture(root: Path, file: PictureFile, known: Collection[bytes]) -> ReadPicture:
    """Read one file, and decode it unless the hash of its content is in `known`."""
    try:
        data = read_bytes(root / os.fsdecode(file.path))
    except UnusableSample as error:
        # Repaired permissions and links change neither time nor size, so the next update tries again.
        return IndexEntry(replace(file, mtime_ns=None), reason=str(error)), None
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest in known:
        return IndexEntry(file, digest), None
    try:
        return IndexEntry(file, digest), decode_picture(data)
    except UnusableSample as error:
        return IndexEntry(file, reason=str(error)), None


def batches(pictures: Iterable[ReadPicture], max_images: int) -> Iterator[list[ReadPicture]]:
    """Group read files into batches, each of which is committed at once.

    Args:
        pictures: from `read_ahead`.
        max_images: most decoded pictures per batch; see also `BATCH_FILES` and `BATCH_PIXELS`.
    """
    batch: list[ReadPicture] = []
    images = 0
    pixels = 0
    for entry, image in pictures:
        batch.append((entry, image))
        if image is not None:
            images += 1
            pixels += image.width * image.height
        if images >= max_images or pixels >= BATCH_PIXELS or len(batch) >= BATCH_FILES:
            yield batch
            batch = []
            images = 0
            pixels = 0
    if batch:
        yield batch
