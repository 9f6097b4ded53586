"""Picture files to embeddings: read, decoded and prepared ahead in threads, with bounded memory."""

import hashlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dalle_mini_impl.data.remote import SourcePath
from dalle_mini_impl.data.sample import UnusableSample, decode_picture, read_bytes
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.images import pixel_count

READERS = min(4, os.cpu_count() or 1)
"""Threads that read, decode and prepare files."""
MAX_PIXELS = 2**26
"""Pixels that are decoded at the same time, which bounds memory; a larger picture is decoded alone."""
MAX_FILES = 1024
"""Most files per batch, those that need no embedding included."""
MIN_PASS = 8
"""Least pictures per pass through the model; fewer are padded. Kernels for one to three rows round differently, which
would show in the half precision of an index: it would depend on how many pictures an update found."""
MAX_NORM_ERROR = 0.01
"""How far the length of an embedding may be from 1."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class EmbeddedPicture(Generic[Item]):
    """A picture file, and its embedding or the reason why there is none."""

    item: Item
    """What the caller calls the file."""
    digest: bytes
    """Hash of the file's content; empty if the file could not be read at all."""
    embedding: Tensor | None
    """(D,), of unit length; None if the picture cannot be used, or its content is known."""
    reason: str = ""
    """Why the picture cannot be used, as `category: details`."""


@dataclass(frozen=True)
class _Prepared(Generic[Item]):
    item: Item
    digest: bytes = b""
    pixels: Tensor | None = None
    """(1, 3, S, S), input of the scorer's model."""
    reason: str = ""


def embed_picture_files(
    scorer: Scorer,
    items: Iterable[Item],
    path_of: Callable[[Item], SourcePath | bytes],
    known: Collection[bytes] = (),
) -> Iterator[list[EmbeddedPicture[Item]]]:
    """Read and embed picture files in order.

    Memory is bounded by the pixels that are decoded at the same time, not by the number of pictures.

    Args:
        scorer: embeds the pictures.
        items: the files, by any name.
        path_of: from a file's name to its path, or to its content; may raise `UnusableSample`.
        known: digests of contents that need no embedding; may grow during the iteration.

    Yields:
        Batches of at most `scorer.chunk_size` embedded pictures; every file is in one of them.
    """
    batch: list[_Prepared[Item]] = []
    prepared = 0
    for picture in _prepare_ahead(scorer, items, path_of, known):
        batch.append(picture)
        prepared += picture.pixels is not None
        if prepared == scorer.chunk_size or len(batch) == MAX_FILES:
            yield _embed(scorer, batch)
            batch = []
            prepared = 0
    if batch:
        yield _embed(scorer, batch)


def _embed(scorer: Scorer, batch: list[_Prepared[Item]]) -> list[EmbeddedPicture[Item]]:
    pixels = [picture.pixels for picture in batch if picture.pixels is not None]
    padding = pixels[-1:] * max(0, MIN_PASS - len(pixels))
    rows = iter(scorer.embed_prepared(torch.cat(pixels + padding)) if pixels else ())
    embedded = []
    for picture in batch:
        embedding = next(rows) if picture.pixels is not None else None
        reason = picture.reason
        # Of a vector with a value that is not a number, the length is not a number.
        if embedding is not None and not abs(float(embedding.norm()) - 1) < MAX_NORM_ERROR:
            embedding, reason = None, "embedding not finite: the scorer gives no direction for this picture"
        embedded.append(EmbeddedPicture(picture.item, picture.digest, embedding, reason))
    return embedded


def _prepare_ahead(
    scorer: Scorer, items: Iterable[Item], path_of: Callable[[Item], SourcePath | bytes], known: Collection[bytes]
) -> Iterator[_Prepared[Item]]:
    prepare = partial(_prepare, scorer, path_of, known, _PixelBudget(MAX_PIXELS))
    started: deque[Future[_Prepared[Item]]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        for item in items:
            started.append(readers.submit(prepare, item))
            if len(started) > 2 * READERS:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()


def _prepare(
    scorer: Scorer,
    path_of: Callable[[Item], SourcePath | bytes],
    known: Collection[bytes],
    budget: "_PixelBudget",
    item: Item,
) -> _Prepared[Item]:
    try:
        path = path_of(item)
        data = path if isinstance(path, bytes) else read_bytes(path)
    except UnusableSample as error:
        return _Prepared(item, reason=str(error))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest in known:
        return _Prepared(item, digest)
    try:
        with budget.take(pixel_count(io.BytesIO(data))):
            return _Prepared(item, digest, scorer.preprocess.from_images([decode_picture(data)]))
    except UnusableSample as error:
        return _Prepared(item, digest, reason=str(error))
    except MemoryError:
        return _Prepared(item, digest, reason="too large: it does not fit into the memory")


class _PixelBudget:
    """Lets threads decode pictures at the same time as long as their pixels together are within a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for a picture; one above the limit waits until it is alone."""
        taken = min(pixels, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()
