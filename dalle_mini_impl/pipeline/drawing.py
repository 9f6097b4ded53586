"""Requests of a `DalleMini`: made of the arguments of `generate`, and drawn by transformer or diffusion decoder."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dalle_mini_impl.pipeline.diffused import check_diffused, choose_decoder, draw_diffused
from dalle_mini_impl.pipeline.picture_embed import to_numbers
from dalle_mini_impl.pipeline.prior_embeds import choose_prior, with_prior
from dalle_mini_impl.pipeline.ranking import default_rank, finish, recommended_ranking, refuse_diversity
from dalle_mini_impl.pipeline.request import GenerationRequest, check_candidates_memory, make_request
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import CHUNK, GeneratedIds, Progress, generate_many
from dalle_mini_impl.sampling.requests import IdRequest

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

FLOAT_BYTES = 4
"""Bytes of a channel of a pixel as a diffusion decoder draws it."""


def prepare(dalle: "DalleMini", given: dict[str, Any]) -> GenerationRequest:
    """Check arguments of `DalleMini.generate`, all of them by name, and encode them.

    Raises:
        UserError: as `DalleMini.generate`.
    """
    scorer = dalle.scorer if dalle.has_scorer else None
    recommended = recommended_ranking(dalle.sampling, scorer, scorer is dalle.own_scorer)
    refuse_diversity(scorer, **given["sampling"])
    decoder, recommended = choose_decoder(
        given["sampling"], recommended, lambda: dalle.diffusion_decoder, has_canvas=given["canvas"] is not None
    )
    drawer = decoder or dalle.stream
    if decoder:
        picture_bytes, ids, vocab = 3 * decoder.size**2 * (FLOAT_BYTES + bool(scorer)), 0, 0
    else:
        ids, vocab = dalle.stream.image_length, dalle.stream.config.image_vocab
        picture_bytes = 3 * ids * dalle.image_tokenizer.config.factor**2 if scorer else 0
    given["image_embed"] = to_numbers(given["image_embed"], dalle.own_scorer, drawer)
    chosen = choose_prior(given, recommended, dalle.prior, drawer)
    width = dalle.prior.network.embed_dim if dalle.prior and chosen == dalle.prior.kind else 0
    count = len(given["seeds"] or ()) or given["candidates"]
    check_candidates_memory(count, given["chunk"] or CHUNK, ids, vocab, picture_bytes, width)
    given["sampling"] = {**given["sampling"], "prior": chosen}
    # A diffusion decoder encodes the texts itself, with as many positions as it has.
    encode = (lambda _: []) if decoder else dalle.encode
    request = make_request(encode=encode, recommended=recommended, **given)
    if decoder:
        check_diffused(request, decoder)
    request = request.with_rank(default_rank(scorer, decoder is not None))
    if request.sampling.rank == "none":  # the kept ones are the first, and no picture depends on another
        request = dataclasses.replace(request, seeds=request.seeds[: request.keep])
    request = with_prior(request, dalle.prior, dalle.own_scorer, drawer)
    if request.sampling.rank not in ("clip", "both"):
        return request
    return dataclasses.replace(request, scorer=dalle.scorer, scorer_source=dalle.scorer_source)


def draw(
    dalle: "DalleMini", requests: Iterable[GenerationRequest], chunk: int | None, progress: Progress
) -> Iterator[Result]:
    """Results of requests, in their order; see `DalleMini.generate_many`."""
    for decoder, group in itertools.groupby(requests, lambda request: request.sampling.decoder):
        if decoder == "diffusion":
            assert dalle.diffusion_decoder is not None
            yield from (draw_diffused(request, dalle.diffusion_decoder, dalle.source) for request in group)
        else:
            yield from _sample(dalle, group, chunk, progress)


def _sample(
    dalle: "DalleMini", requests: Iterable[GenerationRequest], chunk: int | None, progress: Progress
) -> Iterator[Result]:
    waiting: deque[GenerationRequest] = deque()

    def ids() -> Iterator[IdRequest]:
        for request in requests:
            waiting.append(request)
            yield request.ids

    for generated in generate_many(dalle.transformer, dalle.stream, ids(), chunk=chunk, progress=progress):
        yield finish_ids(dalle, waiting.popleft(), generated)


def finish_ids(dalle: "DalleMini", request: GenerationRequest, generated: GeneratedIds) -> Result:
    """The result of a request whose image ids are sampled."""
    return finish(request, generated, dalle.transformer, dalle.stream, dalle.image_tokenizer, dalle.source)
