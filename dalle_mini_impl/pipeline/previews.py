"""Pictures while they are being drawn."""

import time
from collections.abc import Callable, Generator

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Preview
from dalle_mini_impl.sampling.generate import GeneratedIds, draw_rows
from dalle_mini_impl.util.errors import UserError


def draw_previews(
    transformer: Transformer,
    stream: Stream,
    request: GenerationRequest,
    decode: Callable[[Tensor], list[Image.Image]],
    *,
    show: int,
    share: float,
) -> Generator[Preview, None, GeneratedIds]:
    """Draw the ids of a job, giving some of the pictures on the way.

    Args:
        transformer: as `generate` of the ids has it.
        stream: as `generate` has it.
        request: what to draw.
        decode: image ids (n, h, w) -> RGB pictures.
        show: as `DalleMini.stream_previews` has it.
        share: as `DalleMini.stream_previews` has it.

    Yields:
        After some rows of the token grid what is there.

    Returns:
        All candidates.

    Raises:
        UserError: as `generate`, or `show` or `share` is out of range.
    """
    if show < 1 or not 0 <= share <= 1:
        raise UserError(f"show {show} and share {share} were given; expected at least 1, and 0 to 1")
    ids_drawn, total = 0, len(request.seeds) * stream.image_length

    def progress(ids: int) -> None:
        nonlocal ids_drawn
        ids_drawn += ids
        request.progress(ids)

    rows = draw_rows(transformer, stream, **request._replace(progress=progress).drawing)
    start, spent, longest = time.perf_counter(), 0.0, 0.0
    while True:
        try:
            ids = next(rows)[:show]
        except StopIteration as end:
            return end.value
        before = time.perf_counter()
        if spent + longest < share * (before - start) and ids_drawn < total:
            images = _unfinished(ids, stream.config.grid[0], decode)
            took = time.perf_counter() - before
            spent, longest = spent + took, max(longest, took)
            yield Preview(ids_drawn / total, images)


def _unfinished(ids: Tensor, height: int, decode: Callable[[Tensor], list[Image.Image]]) -> list[Image.Image]:
    """Pictures of the first rows of their ids (n, r, w), the rest of the `height` rows white."""
    rows = ids.shape[1]
    # Ids to come also shape the pixels beside them: more of the same is the likeliest.
    images = decode(torch.cat([ids, ids[:, -1:].expand(-1, height - rows, -1)], 1))
    for image in images:
        image.paste("white", (0, image.height * rows // height, image.width, image.height))
    return images
