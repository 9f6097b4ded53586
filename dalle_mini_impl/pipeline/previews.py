"""Pictures that are shown while their ids are still being sampled."""

import time
from collections.abc import Callable, Generator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.canvas import Canvas
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Preview
from dalle_mini_impl.sampling.generate import GeneratedIds, generate_cells
from dalle_mini_impl.util.errors import UserError

PATIENCE = 1.0
"""Seconds without a preview after which one is made in the middle of a row."""


def generate_previews(
    transformer: Decoder,
    stream: Stream,
    request: GenerationRequest,
    decode: Callable[[Tensor], list[Image.Image]],
    *,
    show: int,
    share: float,
) -> Generator[Preview, None, GeneratedIds]:
    """Sample the ids of a request and yield some of the unfinished pictures.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        request: what to sample.
        decode: image ids (n, h, w) -> RGB pictures.
        show: see `DalleMini.stream_previews`.
        share: see `DalleMini.stream_previews`.

    Yields:
        The pictures so far, after some rows of the token grid, or of patches; if a row takes longer than `PATIENCE`,
        within it.

    Returns:
        All candidates that were not pruned.

    Raises:
        UserError: as `generate`, or `show` or `share` is out of range.
    """
    if show < 1 or not 0 <= share <= 1:
        raise UserError(
            f"expected show of 1 or more and share from 0 to 1, got show {show} and share {share}; "
            f"show counts pictures, share is a fraction of the time"
        )
    sampled = 0
    total = len(request.seeds) * stream.image_length

    def progress(ids: int) -> None:
        nonlocal sampled
        sampled += ids
        request.progress(ids)

    cells = generate_cells(transformer, stream, request.ids, chunk=request.chunk, progress=progress)
    row = stream.config.grid[1] * stream.config.patch
    start = last = time.perf_counter()
    spent = 0.0  # seconds that all previews so far have taken
    longest = 0.0  # seconds that one of them has taken at most
    while True:
        try:
            ids = next(cells)[:show]
        except StopIteration as end:
            return end.value
        before = time.perf_counter()
        is_due = ids.shape[1] % row == 0 or before - last > PATIENCE
        # A preview is made where it will probably not exceed its share of the time so far.
        if is_due and spent + longest < share * (before - start) and sampled < total:
            images = decode_unfinished(ids, stream, request.canvas, decode)
            last = time.perf_counter()
            seconds = last - before
            spent += seconds
            longest = max(longest, seconds)
            yield Preview(sampled / total, images)


def first_preview(size: tuple[int, int], canvas: Canvas | None) -> Image.Image:
    """What can be shown before any id is sampled: white, or a canvas with white cells where it will be redrawn.

    Args:
        size: width and height in pixels of the pictures.
        canvas: see `DalleMini.generate`.
    """
    if canvas is None:
        return Image.new("RGB", size, "white")
    image = canvas.picture.copy()
    _whiten(image, canvas.known.redraw)
    return image


def decode_unfinished(
    ids: Tensor, stream: Stream, canvas: Canvas | None, decode: Callable[[Tensor], list[Image.Image]]
) -> list[Image.Image]:
    """Pictures of the first m ids of some candidates; cells that are still to be sampled are white.

    Args:
        ids: (n, m), in the order of the stream.
        stream: the layout.
        canvas: see `DalleMini.generate`.
        decode: image ids (n, h, w) -> RGB pictures.
    """
    done, cells, row = ids.shape[1], stream.image_length, stream.config.grid[1] * stream.config.patch
    if canvas is not None:
        rest = stream.to_order(canvas.known.image_ids.to(ids))[..., done:].expand(len(ids), -1)
        missing = stream.to_order(canvas.known.redraw).clone()
    else:
        # Pixels also depend on the cells below them and on their right, through convolutions: the best guess for these
        # are the ids above them.
        above = ids[:, -row:] if done >= row else ids[:, -1:]
        rest = above.repeat(1, cells)[:, : cells - done]
        missing = torch.ones(cells, dtype=torch.bool)
    missing[:done] = False
    images = decode(stream.to_grid(torch.cat([ids, rest], 1)))
    images = [canvas.paste_original(image) for image in images] if canvas else images
    for image in images:
        _whiten(image, stream.to_grid(missing))
    return images


def _whiten(image: Image.Image, cells: Tensor) -> None:
    """Make some cells (h, w) of a picture white."""
    mask = Image.fromarray(cells.numpy().astype(np.uint8) * 255)
    image.paste("white", (0, 0), mask.resize(image.size, Image.Resampling.NEAREST))
