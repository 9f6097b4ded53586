"""Bringing an index up to date with a folder: what is new is read and embedded, what is gone is forgotten."""

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
from dalle_mini_impl.search.store import File, IndexEntry, Store, free_rows
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS
from dalle_mini_impl.util.text import printable

READERS = min(4, os.cpu_count() or 1)
BATCH_FILES, BATCH_PIXELS = 1024, 2**26
"""Files, and pixels of decoded pictures, that may wait for the next commit."""

Read: TypeAlias = tuple[IndexEntry, Image.Image | None]
"""A picture file that was read; the picture only where it can be used and its content is new."""


@dataclass(frozen=True)
class Changes:
    """What an update did, in pictures."""

    unchanged: int
    """Time and size are as they were."""
    embedded: int
    """Contents seen for the first time."""
    known: int
    """Read, but the same content was in the index or under another name already."""
    unreadable: int
    """All there are, those known before included."""
    gone: int
    """No longer in the folder."""


def update(store: Store, scorer: Scorer, root: Path, log: SkipLog) -> Changes:
    """Make an index what a folder is. Work is committed in batches; what is committed is not done again.

    Args:
        store: the index; no other process may write it.
        scorer: embeds the pictures.
        root: the folder.
        log: takes every picture and folder that cannot be read, those known before included.

    Raises:
        UserError: the folder holds no pictures at all, in which case the index stays as it is.
    """
    files = scan(root, log)
    if not files:
        raise UserError(f"{root} holds no pictures; expected files that end in {', '.join(sorted(PICTURE_ENDINGS))}")
    store.set_fact("root", os.path.relpath(root, store.folder.resolve()))
    before, rows = store.files(), store.contents()
    waiting = [file for file in files if file.mtime_ns is None or before.get(file.path) != (file.mtime_ns, file.size)]
    free, embedded, failed = free_rows(rows), 0, 0
    with tqdm(total=len(waiting), unit=" pictures", disable=None, leave=False) as bar:
        for batch in batches(read_ahead(root, waiting, rows), scorer.chunk_size):
            new = {entry.hash: image for entry, image in batch if image is not None and entry.hash not in rows}
            vectors = dict(zip(new, scorer.embed_images(list(new.values())), strict=True))
            rows.update(zip(new, free, strict=False))
            store.add([entry for entry, _ in batch], vectors, rows)
            embedded += len(new)
            failed += sum(bool(entry.reason) for entry, _ in batch)
            bar.update(len(batch))
    gone = sorted(before.keys() - {file.path for file in files})
    store.remove(gone)
    unreadable = store.unreadable()
    for path, reason in unreadable:
        log.add(printable(os.fsdecode(path)), printable(reason))
    return Changes(
        unchanged=len(files) - len(waiting) - (len(unreadable) - failed),
        embedded=embedded,
        known=len(waiting) - embedded - failed,
        unreadable=len(unreadable),
        gone=len(gone),
    )


def scan(root: Path, log: SkipLog) -> list[File]:
    """All picture files below a folder, told by their endings."""
    files = []
    for path in list_files(root, log):
        if path.suffix.lower() in PICTURE_ENDINGS:
            name = os.fsencode(path.relative_to(root))
            try:
                status = path.stat()
            except OSError:  # a link to nothing; reading it will say so
                files.append(File(name, None, 0))
            else:
                files.append(File(name, status.st_mtime_ns, status.st_size))
    return files


def read_ahead(root: Path, files: Sequence[File], known: Collection[bytes]) -> Iterator[Read]:
    """Read files in their order, some ahead in threads of their own.

    Args:
        root: the folder.
        files: in it.
        known: hashes of contents that need no decoding; may grow meanwhile.
    """
    started: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        for file in files:
            started.append(readers.submit(read, root, file, known))
            if len(started) > 2 * READERS:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()


def read(root: Path, file: File, known: Collection[bytes]) -> Read:
    """Read one file, and decode it unless the hash of its content is known."""
    try:
        data = read_bytes(root / os.fsdecode(file.path))
    except UnusableSample as skip:
        # Repaired permissions and links change neither time nor size, so the next update tries again.
        return IndexEntry(replace(file, mtime_ns=None), reason=str(skip)), None
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest in known:
        return IndexEntry(file, digest), None
    try:
        return IndexEntry(file, digest), decode_picture(data)
    except UnusableSample as skip:
        return IndexEntry(file, reason=str(skip)), None


def batches(reads: Iterable[Read], most_images: int) -> Iterator[list[Read]]:
    """Divide what was read into batches that fit into memory and are soon committed."""
    batch: list[Read] = []
    images = pixels = 0
    for entry, image in reads:
        batch.append((entry, image))
        if image is not None:
            images, pixels = images + 1, pixels + image.width * image.height
        if images >= most_images or pixels >= BATCH_PIXELS or len(batch) >= BATCH_FILES:
            yield batch
            batch, images, pixels = [], 0, 0
    if batch:
        yield batch
