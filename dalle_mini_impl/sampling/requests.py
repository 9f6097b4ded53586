"""What to sample: requests of one prompt each, divided into pieces and put together into batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.graph_decoder import free_for_batches
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.next_ids import validate_sampling
from dalle_mini_impl.util.errors import UserError

CHUNK = 64
"""Candidates decoded at a time by default, except on CUDA. Memory grows with it; the ids do not depend on it."""
LARGEST_CHUNK = 512
"""Largest number that is chosen on CUDA: more are hardly faster."""


Watch: TypeAlias = Callable[[int, Callable[[], Tensor]], bool]
"""Callback: called after each cell with the number m of cells that are sampled, and a function that returns the first m
ids of the request's candidates that are being decoded, (n, m); it returns whether the request is still wanted."""


@dataclass(frozen=True)
class Prompt:
    """What to draw and what to avoid."""

    text_ids: Sequence[int]
    """The caption, as text ids."""
    negative_ids: Sequence[int] = ()
    """What guidance moves away from; empty means "no caption". It has no image embedding."""
    image_embed: Sequence[float] = ()
    """(D,) embedding of a picture to draw like, of any length, by the scorer that the model was trained with; empty
    means "no image embedding"."""


@dataclass(frozen=True, eq=False)
class IdRequest:
    """What to sample for one prompt."""

    prompt: Prompt
    """What to draw and what to avoid."""
    seeds: Sequence[int]
    """One per candidate."""
    sampling: SamplingConfig
    """Temperature, top-k, top-p and guidance; the other settings are not used here."""
    prune_to: int | None = None
    """Drop the less likely candidates early by successive halving, but keep at least this many of each chunk; None
    finishes all."""
    known: KnownIds | None = None
    """A picture some of whose ids stay. Ids are sampled in the order of the stream: each is conditioned on the known
    ids before it, not on those after it."""
    watch: Watch | None = None
    """Follows the request while it is sampled. Where it is not wanted any more, the candidates that are being decoded
    are dropped, and its result lacks them."""
    image_embeds: Sequence[Sequence[float]] = ()
    """An image embedding for each seed, in place of that of the prompt; none for the prompt's."""


class PromptStart(NamedTuple):
    """What rows of a batch continue."""

    text_ids: tuple[int, ...]
    """A caption."""
    shared: tuple[int, ...]
    """The image ids after it."""
    image_embed: tuple[float, ...] = ()
    """As `Prompt.image_embed`."""


class Piece(NamedTuple):
    """Candidates of one request that are decoded in one batch, alone or together with those of other requests."""

    request: IdRequest
    first: int
    """Index of its first seed."""
    seeds: Sequence[int]
    known: KnownIds
    shared: tuple[int, ...]
    """Known ids that all its candidates begin with."""
    is_last: bool
    """Whether it is the last one of its request."""

    @property
    def is_guided(self) -> bool:
        """Whether its candidates have a second row, with the negative caption."""
        return self.request.sampling.guidance != 1

    @property
    def starts(self) -> list[PromptStart]:
        """What the row of each candidate continues: the caption, its image embedding and the shared ids."""
        prompt = self.request.prompt
        own = self.request.image_embeds[self.first : self.first + len(self.seeds)]
        embeds = own or [prompt.image_embed] * len(self.seeds)
        return [PromptStart(tuple(prompt.text_ids), self.shared, tuple(embed)) for embed in embeds]

    @property
    def negative_start(self) -> PromptStart | None:
        """With guidance, what their second rows continue."""
        return PromptStart(tuple(self.request.prompt.negative_ids), self.shared) if self.is_guided else None


def choose_chunk(transformer: Decoder, stream: Stream) -> int:
    """How many candidates to decode at a time: `CHUNK`; on CUDA a power of two, as many as half the memory holds."""
    if transformer.device.type != "cuda":
        return CHUNK
    # With guidance each has two rows; logits are in fp32, and there are a few copies of them.
    bytes_each = transformer.new_cache(1, 1).branch_bytes(2, stream.length) + 40 * stream.config.image_vocab
    fitting = max(1, free_for_batches(transformer) // 2 // bytes_each)
    return min(LARGEST_CHUNK, 2 ** (fitting.bit_length() - 1))


def divide(stream: Stream, requests: Iterable[IdRequest], chunk: int, pruned_chunk: int) -> Iterator[Piece]:
    """Check requests, and divide each into pieces of at most `chunk` candidates, `pruned_chunk` if some are dropped."""
    if chunk < 1:
        raise UserError(f"expected a chunk of at least 1 candidate, got {chunk}; {CHUNK} is the default")
    for request in requests:
        seeds = request.seeds
        if not seeds:
            raise UserError("expected at least one seed, got none; give one per candidate")
        validate_sampling(request.sampling, stream.config.image_vocab)
        stream.embeddings(request.image_embeds or [request.prompt.image_embed])
        if request.image_embeds and len(request.image_embeds) != len(seeds):
            raise UserError(
                f"expected an image embedding for each of {len(seeds)} seeds, got {len(request.image_embeds)}; give as "
                f"many"
            )
        known = request.known or KnownIds.none(stream.config.grid)
        known.validate(stream, len(seeds))
        shared = tuple(known.shared_prefix(stream).tolist())
        size = chunk if request.prune_to is None else pruned_chunk
        for first in range(0, len(seeds), size):
            part = seeds[first : first + size]
            yield Piece(request, first, part, known, shared, first + size >= len(seeds))


def batches(pieces: Iterable[Piece], chunk: int) -> Iterator[list[Piece]]:
    """Neighbouring pieces of at most `chunk` candidates together, and of equally many shared ids."""
    batch: list[Piece] = []
    for piece in pieces:
        size = sum(len(other.seeds) for other in batch) + len(piece.seeds)
        if batch and (size > chunk or len(piece.shared) != len(batch[0].shared)):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
