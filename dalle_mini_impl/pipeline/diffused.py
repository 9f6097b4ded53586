"""Pictures of a request that a diffusion decoder draws, in place of the transformer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dalle_mini_impl.config.sampling import DECODERS, SamplingConfig
from dalle_mini_impl.pipeline.ranking import rank_candidates
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import GeneratedIds
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder, Wanted
from dalle_mini_impl.util.errors import UserError


def choose_decoder(
    given: Mapping[str, Any],
    recommended: SamplingConfig,
    load: Callable[[], DiffusionDecoder | None],
    *,
    has_canvas: bool = False,
) -> tuple[DiffusionDecoder | None, SamplingConfig]:
    """What draws the pictures of a request, and the settings that are recommended with it.

    Args:
        given: sampling settings of the request.
        recommended: for the transformer.
        load: loads the diffusion decoder of the checkpoint.
        has_canvas: whether some of the picture is given, which the transformer draws unless `given` says otherwise.

    Returns:
        None for the transformer.

    Raises:
        UserError: the choice is unknown, the checkpoint has no diffusion decoder, or a setting needs the other decoder.
    """
    asked = given.get("decoder")
    chosen = asked or ("tokens" if has_canvas else recommended.decoder)
    if chosen == "tokens":
        others = [name for name in ("sampler", "steps", "eta") if given.get(name) is not None]
        if others and not asked:  # a choice may be one of several prompts', the settings those of all
            raise UserError(f"expected decoder diffusion with {others[0]}, got tokens, which has none; leave one out")
        return None, dataclasses.replace(recommended, decoder=chosen)
    decoder = chosen_decoder(chosen, load())
    if given.get("rank") in ("likelihood", "both"):
        raise UserError(
            f"expected rank clip or none with decoder diffusion, got {given['rank']}: only a transformer knows "
            f"likelihoods; change one"
        )
    for name in ("tile", "prune"):
        if given.get(name):
            raise UserError(f"expected decoder tokens with {name}, got diffusion; leave one out")
    own = {name: getattr(decoder.sampling, name) for name in ("sampler", "steps", "guidance")}
    rank = "none" if recommended.rank == "none" else "auto"
    return decoder, dataclasses.replace(recommended, decoder=chosen, rank=rank, tile=False, prune=False, **own)


def chosen_decoder(chosen: str, decoder: DiffusionDecoder | None) -> DiffusionDecoder:
    """The diffusion decoder of a checkpoint, where it is chosen.

    Raises:
        UserError: something else is chosen, or the checkpoint has none.
    """
    if chosen != "diffusion":
        raise UserError(f"expected decoder {' or '.join(DECODERS)}, got {chosen!r}; choose one")
    if decoder is None:
        raise UserError(
            "expected a checkpoint with a diffusion decoder, and with the scorer that it was trained with, got one "
            "without; train one with dalle train diffusion-decoder, or choose decoder tokens"
        )
    return decoder


def check_diffused(request: GenerationRequest, decoder: DiffusionDecoder) -> None:
    """Refuse a request that a diffusion decoder cannot draw.

    Raises:
        UserError: some of the picture is given, or a setting is out of range.
    """
    if request.canvas is not None:
        raise UserError("expected decoder tokens to redraw a part of a picture, got diffusion; leave it out")
    decoder.check_settings(request.sampling, request.negative)


def draw_diffused(request: GenerationRequest, decoder: DiffusionDecoder, source: dict[str, str]) -> Result:
    """Draw the candidates of a request, rank them, and keep the best.

    Args:
        request: what was asked for.
        decoder: draws them.
        source: what results record about the model.
    """
    seeds = request.seeds
    embeds = request.draw_embeds() or [request.prompt_ids.image_embed] * len(seeds)
    # On a CPU one at a time takes hardly longer, and rounds the same whatever else is drawn.
    size = 1 if decoder.device.type == "cpu" else request.chunk
    drawn = []
    for first in range(0, len(seeds), size):
        part = slice(first, first + size)
        wanted = Wanted(embeds[part], request.prompt, request.negative)
        drawn.append(decoder.draw(wanted, seeds[part], request.sampling, request.progress))
    pixels, image_ids = (torch.cat([getattr(one, name) for one in drawn]) for name in ("pixels", "image_ids"))
    generated = GeneratedIds(torch.arange(len(seeds)), image_ids, torch.zeros(len(seeds)))
    candidates = rank_candidates(request, generated, lambda rows: pixels[rows.to(pixels.device)])
    settings = {**source, **request.metadata}
    embed = request.prompt_ids.image_embed
    return Result(request.prompt, request.negative, candidates, settings, None, embed)
