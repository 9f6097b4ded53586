"""Image embeddings of a request's candidates, from where `sampling.prior` says (Ramesh et al. 2022, DALL-E 2)."""

import dataclasses
from functools import partial

from dalle_mini_impl.config.sampling import PRIORS
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
from dalle_mini_impl.unclip.prior import Prior
from dalle_mini_impl.util.errors import UserError


def with_prior(
    request: GenerationRequest, prior: Prior | None, scorer: Scorer | None, drawer: Stream | DiffusionDecoder
) -> GenerationRequest:
    """Have each candidate get an image embedding of its own, which follows from the prompt and its seed.

    They are drawn where the request's `ids` are read, so that requests can be checked without.

    Args:
        request: its `sampling.prior` is replaced by what `auto` stands for.
        prior: of the checkpoint.
        scorer: of the checkpoint.
        drawer: the transformer's stream, or the diffusion decoder that draws the pictures.

    Raises:
        UserError: `sampling.prior` is unknown, the checkpoint has no such prior, the transformer takes no embeddings,
            or the request has an embedding or tiles.
    """
    chosen = _choose(request, prior, drawer)
    request = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, prior=chosen))
    if chosen == "none":
        return request
    _check(request, prior, drawer)
    if chosen == "text":
        if scorer is None:
            raise UserError("expected a checkpoint with a scorer for prior text, got one without; choose prior none")
        return dataclasses.replace(request, draw_embeds=partial(_embed_text, scorer, request))
    assert prior is not None
    return dataclasses.replace(request, draw_embeds=partial(_draw, prior, request))


def _embed_text(scorer: Scorer, request: GenerationRequest) -> list[list[float]]:
    return scorer.embed_texts([clean_caption(request.prompt)]).tolist() * len(request.seeds)


def _draw(prior: Prior, request: GenerationRequest) -> list[list[float]]:
    return prior.draw([request.prompt] * len(request.seeds), request.seeds).tolist()


def _choose(request: GenerationRequest, prior: Prior | None, drawer: Stream | DiffusionDecoder) -> str:
    """Where the embeddings come from: the request's choice, or what `auto` stands for."""
    chosen = request.sampling.prior
    if chosen not in PRIORS:
        raise UserError(f"expected prior {', '.join(PRIORS[:-1])} or {PRIORS[-1]}, got {chosen!r}; choose one")
    if chosen != "auto":
        return chosen
    has_other = request.prompt_ids.image_embed or request.canvas or request.sampling.tile or not request.prompt
    if has_other:
        return "none"
    if isinstance(drawer, DiffusionDecoder):  # which can hardly draw without an embedding
        return prior.kind if prior else "text"
    return "none" if prior is None or not drawer.config.embed_positions else prior.kind


def _check(request: GenerationRequest, prior: Prior | None, drawer: Stream | DiffusionDecoder) -> None:
    chosen = request.sampling.prior
    drawer.check_takes_embeddings()
    if request.prompt_ids.image_embed:
        raise UserError(f"expected image_embed or prior {chosen}, got both; leave one out")
    if request.sampling.tile:
        raise UserError(f"expected prior none with tile, got {chosen}; leave one out")
    if chosen != "text" and (prior is None or prior.kind != chosen):
        got = f"one of kind {prior.kind}" if prior else "none over the embeddings of its scorer"
        raise UserError(
            f"expected a checkpoint with a prior of kind {chosen}, got {got}; train one with dalle train prior, or "
            f"choose prior text or none"
        )
