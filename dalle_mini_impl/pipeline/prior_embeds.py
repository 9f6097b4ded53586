"""Image embeddings of a request's candidates, from where `sampling.prior` says (Ramesh et al. 2022, DALL-E 2)."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dalle_mini_impl.config.sampling import PRIORS, SamplingConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
from dalle_mini_impl.unclip.prior import Prior
from dalle_mini_impl.util.errors import UserError


def choose_prior(
    given: Mapping[str, Any], recommended: SamplingConfig, prior: Prior | None, drawer: Stream | DiffusionDecoder
) -> str:
    """Where the image embeddings of a request's candidates come from: one of `PRIORS` other than `auto`.

    An embedding that is given, and tiles, exclude a prior that is asked for, and are drawn without one that is only
    recommended.

    Args:
        given: arguments of `DalleMini.generate`, all of them by name.
        recommended: sampling settings.
        prior: of the checkpoint.
        drawer: the transformer's stream, or the diffusion decoder that draws the pictures.

    Raises:
        UserError: `prior` is unknown.
    """
    asked, tile = (given["sampling"].get(name) for name in ("prior", "tile"))
    excludes_prior = bool(given["image_embed"]) or (recommended.tile if tile is None else tile)
    chosen = ("auto" if excludes_prior else recommended.prior) if asked is None else asked
    if chosen not in PRIORS:
        raise UserError(f"expected prior {', '.join(PRIORS[:-1])} or {PRIORS[-1]}, got {chosen!r}; choose one")
    if chosen != "auto":
        return str(chosen)
    if excludes_prior or given["canvas"] or not given["prompt"]:
        return "none"
    if isinstance(drawer, DiffusionDecoder):  # which can hardly draw without an embedding
        return prior.kind if prior else "text"
    return "none" if prior is None or not drawer.config.embed_positions else prior.kind


def with_prior(
    request: GenerationRequest, prior: Prior | None, scorer: Scorer | None, drawer: Stream | DiffusionDecoder
) -> GenerationRequest:
    """Have each candidate get an image embedding of its own, which follows from the prompt and its seed.

    They are drawn where the request's `ids` are read, so that requests can be checked without.

    Args:
        request: its `sampling.prior` says where from; see `choose_prior`.
        prior: of the checkpoint.
        scorer: of the checkpoint.
        drawer: the transformer's stream, or the diffusion decoder that draws the pictures.

    Raises:
        UserError: the checkpoint has no such prior, the transformer takes no embeddings, or the request has an
            embedding or tiles.
    """
    chosen = request.sampling.prior
    if chosen == "none":
        return request
    _check(request, prior, drawer)
    if chosen == "text" and scorer is None:
        raise UserError("expected a checkpoint with a scorer for prior text, got one without; choose prior none")
    draw = partial(draw_embeds, chosen, request.prompt, request.seeds, prior, scorer)
    return dataclasses.replace(request, draw_embeds=draw)


def draw_embeds(
    chosen: str, prompt: str, seeds: Sequence[int], prior: Prior | None, scorer: Scorer | None
) -> list[list[float]]:
    """An image embedding for each candidate of a prompt; none with `none`.

    Args:
        chosen: where from; see `choose_prior`.
        prompt: the caption.
        seeds: of the candidates.
        prior: of the checkpoint, where it is chosen.
        scorer: of the checkpoint, where the text embedding is chosen.
    """
    if chosen == "none":
        return []
    if chosen == "text":
        assert scorer is not None
        return scorer.embed_texts([clean_caption(prompt)]).tolist() * len(seeds)
    assert prior is not None
    return prior.draw([prompt] * len(seeds), seeds).tolist()


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
