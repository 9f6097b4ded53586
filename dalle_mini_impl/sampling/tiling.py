"""Pictures that can be laid side by side: ids at the edges are drawn again where they see what lies across."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import GeneratedIds, Progress, Prompt, generate
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.sampling.seeds import candidate_seed

PASSES = 3
"""Times that a picture is run through the model again."""


def seams(grid: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """How far to roll a picture so that its edges meet inside, and which places then lie at the seam.

    First the left and right edge, then the upper and lower one without its corners, then these: so each pass
    leaves alone what an earlier one has joined.

    Yields:
        Rows and columns to roll down and right by, and (h, w) bool.
    """
    h, w = grid
    down, right = h // 2, w // 2
    beside, below, corners = (torch.zeros(grid, dtype=torch.bool) for _ in range(3))
    beside[:, right - 1 : right + 1] = True
    below[down - 1 : down + 1, 1:-1] = True
    corners[down - 1 : down + 1, right - 1 : right + 1] = True
    yield (0, right), beside
    yield (down, 0), below
    yield (down, right), corners


def close_seams(
    transformer: Transformer,
    stream: Stream,
    prompt: Prompt,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    drawn: GeneratedIds,
    free: Tensor,
    chunk: int,
    progress: Progress,
) -> GeneratedIds:
    """Draw the edges of pictures again, each rolled so that they lie inside and what is across is in their past.

    A causal model sees what is above and on the left; the right neighbour of what is drawn is seen by none. So what
    was drawn is taken only where the rolled picture as a whole became likelier by it, and stays as it was otherwise.
    The likelihoods that are returned are those of the pictures in the end, not rolled.

    Args:
        transformer: as `generate` has it.
        stream: as `generate` has it.
        prompt: as `generate` has it.
        seeds: those that `drawn.numbers` are numbers of.
        sampling: as `generate` has it.
        drawn: what is to be closed.
        free: (h, w) bool: the places that may change.
        chunk: as `generate` has it.
        progress: told of every pass, as if there were one for every seed.
    """

    def nats(pictures: Tensor) -> Tensor:
        parts = pictures.split(chunk)
        return torch.cat([log_likelihood(transformer, stream, prompt.text_ids, part).sum(1) for part in parts])

    own, image_ids = [seeds[number] for number in drawn.numbers.tolist()], drawn.image_ids
    for number, (roll, places) in enumerate(seams(stream.config.grid), 1):
        redraw = places & free.roll(roll, (0, 1))
        if not redraw.any():
            progress(len(seeds) * stream.image_length)
            continue
        progress((len(seeds) - len(own)) * stream.image_length)
        known = KnownIds(image_ids.roll(roll, (1, 2)), redraw)
        again = [candidate_seed(seed, number) for seed in own]
        redrawn = generate(transformer, stream, prompt, again, sampling, chunk=chunk, progress=progress, known=known)
        better = redrawn.likelihood > nats(known.image_ids)
        chosen = torch.where(better[:, None, None], redrawn.image_ids, known.image_ids)
        image_ids = chosen.roll((-roll[0], -roll[1]), (1, 2))
    return GeneratedIds(drawn.numbers, image_ids, nats(image_ids))
