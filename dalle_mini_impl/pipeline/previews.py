"""Pictures that are shown while their ids are still being sampled."""

import dataclasses
import time
from collections.abc import Callable, Generator

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Preview
from dalle_mini_impl.sampling.generate import GeneratedIds, generate_rows
from dalle_mini_impl.util.errors import UserError


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
        After some rows of the token grid, the pictures so far.

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

    counted = dataclasses.replace(request, progress=progress)
    rows = generate_rows(transformer, stream, **counted.decoding_arguments)
    start = time.perf_counter()
    spent = 0.0  # seconds that all previews so far have taken
    longest = 0.0  # seconds that one of them has taken at most
    while True:
        try:
            ids = next(rows)[:show]
        except StopIteration as end:
            return end.value
        before = time.perf_counter()
        # A preview is made where it will probably not exceed its share of the time so far.
        if spent + longest < share * (before - start) and sampled < total:
            images = _decode_unfinished(ids, stream.config.grid[0], decode)
            seconds = time.perf_counter() - before
            spent += seconds
            longest = max(longest, seconds)
            yield Preview(sampled / total, images)


def _decode_unfinished(ids: Tensor, height: int, decode: Callable[[Tensor], list[Image.Image]]) -> list[Image.Image]:
    """Pictures of the first rows of ids (n, r, w); the rest of the `height` rows is white."""
    rows = ids.shape[1]
    # Pixels of the last row also depend on the row below, through convolutions: repeating it is the best guess.
    images = decode(torch.cat([ids, ids[:, -1:].expand(-1, height - rows, -1)], 1))
    for image in images:
        image.paste("white", (0, image.height * rows // height, image.width, image.height))
    return images
