"""Pictures that can be laid side by side: ids at the edges are sampled again with the opposite edge in context."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import GeneratedIds, Progress, generate
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.sampling.requests import Prompt
from dalle_mini_impl.sampling.seeds import candidate_seed

SEAM_PASSES = 3
"""Times that `close_seams` samples ids again: the left and right edges, the upper and lower edges, and the corners."""


def seam_passes(grid: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Shifts that bring the edges of a picture into its middle, where they meet along a seam, and the cells there.

    First the left and right edges, then the upper and lower ones without their corners, then the corners: so no pass
    changes what an earlier one has joined.

    Args:
        grid: (h, w).

    Yields:
        Rows and columns by which to roll the picture down and right, and the cells at the seam, (h, w) bool.
    """
    h, w = grid
    down = h // 2
    right = w // 2
    left_and_right, upper_and_lower, corners = (torch.zeros(grid, dtype=torch.bool) for _ in range(3))
    left_and_right[:, right - 1 : right + 1] = True
    upper_and_lower[down - 1 : down + 1, 1:-1] = True
    corners[down - 1 : down + 1, right - 1 : right + 1] = True
    yield (0, right), left_and_right
    yield (down, 0), upper_and_lower
    yield (down, right), corners


def close_seams(
    transformer: Decoder,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    generated: GeneratedIds,
    redraw: Tensor,
    chunk: int,
    progress: Progress,
) -> GeneratedIds:
    """Sample the ids at the edges of pictures again, with each picture rolled so that its edges meet in the middle.

    An id is conditioned on the cells before it in the order of the stream, not on its right neighbour, so a new edge
    may also fit worse than the old one. It is therefore used only where the whole rolled picture has become likelier.

    Args:
        transformer: see `generate`.
        stream: see `generate`.
        prompt: see `generate`.
        seeds: those that `generated.indices` refers to.
        sampling: see `generate`.
        generated: the pictures.
        redraw: (h, w) bool: the cells that may change.
        chunk: see `generate`.
        progress: called for each pass as `generate` does, and also for candidates that were pruned.

    Returns:
        The same candidates. Their log-likelihoods are those of the final pictures, not rolled.
    """

    def nats(image_ids: Tensor) -> Tensor:
        given = (prompt.text_ids, prompt.image_embed)
        parts = [log_likelihood(transformer, stream, given[0], part, given[1]) for part in image_ids.split(chunk)]
        return torch.cat(parts).sum(1)

    own_seeds = [seeds[index] for index in generated.indices.tolist()]
    image_ids = generated.image_ids
    for pass_number, (shift, seam) in enumerate(seam_passes(stream.config.grid), 1):
        seam_redraw = seam & redraw.roll(shift, (0, 1))
        if not seam_redraw.any():
            progress(len(seeds) * stream.image_length)
            continue
        progress((len(seeds) - len(own_seeds)) * stream.image_length)
        known = KnownIds(image_ids.roll(shift, (1, 2)), seam_redraw)
        pass_seeds = [candidate_seed(seed, pass_number) for seed in own_seeds]
        resampled = generate(
            transformer, stream, prompt, pass_seeds, sampling, chunk=chunk, progress=progress, known=known
        )
        likelier = resampled.log_likelihood > nats(known.image_ids)
        chosen = torch.where(likelier[:, None, None], resampled.image_ids, known.image_ids)
        image_ids = chosen.roll((-shift[0], -shift[1]), (1, 2))
    return GeneratedIds(generated.indices, image_ids, nats(image_ids))
