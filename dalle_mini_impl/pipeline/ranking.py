"""Sampled ids -> result: orders candidates by likelihood, by the CLIP scorer or by both, and decodes those kept."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.data.cut_out import without_ground
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Candidate, Result
from dalle_mini_impl.sampling.generate import CHUNK, GeneratedIds
from dalle_mini_impl.sampling.tiling import close_seams
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_bytes, to_images
from dalle_mini_impl.util.ranking import best_first, check_finite

EQUAL = 1 - 1e-5
"""Cosine of embeddings above which pictures count as equal."""


def recommended_ranking(recommended: SamplingConfig, scorer: Scorer | None, own: bool) -> SamplingConfig:
    """How to rank where the caller does not say.

    Args:
        recommended: the checkpoint's recommendation.
        scorer: what can rank besides the likelihood, if anything.
        own: whether that is the checkpoint's own scorer, which the recommendation was made for.
    """
    if scorer is None:
        return replace(recommended, rank="none" if recommended.rank == "none" else "likelihood")
    if own:
        return recommended
    return replace(recommended, rank="clip" if recommended.rank == "clip" else "both", clip_weight=1.0)


def default_rank(scorer: Scorer | None, is_diffused: bool) -> str:
    """What `auto` stands for.

    Args:
        scorer: what can rank besides the likelihood, if anything.
        is_diffused: whether a diffusion decoder draws, which knows no likelihood.
    """
    if is_diffused:
        return "none" if scorer is None else "clip"
    return "likelihood" if scorer is None else "both"


def refuse_diversity(
    scorer: Scorer | None, diversity: float | None = None, rank: str | None = None, **others: Any
) -> None:
    """Refuse given sampling settings that ask for pictures that differ where no scorer can tell.

    Raises:
        UserError: they do, and do not say that it is to rank without one.
    """
    if scorer is None and diversity and rank not in ("likelihood", "none"):
        raise UserError(
            f"expected a scorer for diversity {diversity}, which compares pictures by one, got none; leave diversity "
            f"out, or name one: --scorer NAME, or in Python DalleMini.scorer = ..."
        )


def describe_scorer(scorer: Scorer | None) -> dict[str, str] | None:
    """What results record of a scorer that is not the checkpoint's own: its name, if it has one, and its identity.

    Raises:
        UserError: it is no `Scorer`.
    """
    if scorer is None:
        return None
    if not isinstance(scorer, Scorer):
        raise UserError(
            f"expected a Scorer, or None for none, got {type(scorer).__name__}; load one with "
            f"Scorer.from_pretrained(NAME)"
        )
    return {"name": scorer.name, "identity": scorer_identity(scorer)}


def decoded_candidates(request: GenerationRequest, generated: GeneratedIds) -> list[int]:
    """Rows of the candidates that are decoded: all where a scorer looks at them, otherwise the kept ones alone."""
    if request.scorer or request.sampling.rank == "none":
        return list(range(len(generated.indices)))
    return best_first(generated.log_likelihood.cpu()).tolist()[: request.keep]


def rank_candidates(
    request: GenerationRequest, generated: GeneratedIds, decode: Callable[[Tensor], Tensor]
) -> tuple[Candidate, ...]:
    """The candidates to keep, best first; equally good ones stay in the order of their seeds.

    Candidates whose score is not a number come last, and have none. With `diversity`, the best one is followed by those
    that are good and unlike the ones before; see `most_diverse`.

    Args:
        request: gives the ranking, the scorer and how many to keep.
        generated: all candidates.
        decode: rows (n,) of `generated` -> their pixels (n, 3, H, W).

    Raises:
        UserError: no candidate has a score that is a number.
    """

    def pictures(rows: Tensor) -> Tensor:
        size = min(request.chunk, CHUNK)  # decoding takes more memory than sampling
        return torch.cat([to_bytes(decode(part)) for part in rows.split(size)])

    def finished(pixels: Tensor) -> list[Image.Image]:
        images = to_images(pixels)
        return [request.canvas.paste_original(image) for image in images] if request.canvas else images

    # Decoding all candidates takes about as long as sampling them, so without a scorer only the kept ones are decoded.
    pixels = pictures(torch.arange(len(generated.indices))) if request.scorer else None
    # A scorer on a GPU looks at the pixels where they are, one on a CPU at pictures, which have a better resampling.
    stay = request.scorer is not None and request.scorer.is_on_gpu and not request.canvas
    scored = pixels if stay or pixels is None else finished(pixels)
    order = list(range(len(generated.indices)))
    scores: list[float | None] = [None] * len(order)
    if request.sampling.rank != "none":
        embed = None
        if request.scorer is not None and scored is not None:
            embed = request.scorer.embed_images(scored)
        values = _ranking_scores(request, generated, embed)
        if not values.isfinite().any():
            check_finite(values, "scores of candidates", "the model's weights are damaged: copy or train it again")
        order = best_first(values).tolist()
        if request.scorer is not None and embed is not None and request.sampling.diversity:
            weight = request.sampling.diversity * _cosine_scale(request.scorer, request.sampling)
            order = most_diverse(values, embed, weight, request.keep)
        scores = [score if math.isfinite(score) else None for score in values.tolist()]
    order = order[: request.keep]
    if isinstance(scored, list):
        kept_images = [scored[i] for i in order]
    else:
        kept_images = finished(pictures(torch.tensor(order)) if pixels is None else pixels[order])
    if request.sampling.transparent:
        kept_images = [without_ground(image) for image in kept_images]
    image_ids = generated.image_ids.cpu()
    seeds = [request.seeds[index] for index in generated.indices.tolist()]
    return tuple(
        Candidate(image, scores[i], seeds[i], image_ids[i]) for i, image in zip(order, kept_images, strict=True)
    )


def finish(
    request: GenerationRequest,
    generated: GeneratedIds,
    transformer: Decoder,
    stream: Stream,
    image_tokenizer: ImageTokenizer,
    source: dict[str, str],
    decoded: Mapping[int, Tensor] | None = None,
) -> Result:
    """Sampled ids -> result: close the seams of tiles, rank, and decode.

    Args:
        request: what was asked for.
        generated: all candidates.
        transformer: that sampled them.
        stream: its layout.
        image_tokenizer: decodes them.
        source: what results record about the model.
        decoded: pixels (3, H, W) of the rows that `decoded_candidates` names, if these are decoded already.
    """
    tile = request.sampling.tile
    if tile:
        every_cell = torch.ones(stream.config.grid, dtype=torch.bool)
        generated = close_seams(
            transformer,
            stream,
            request.prompt_ids,
            request.seeds,
            request.sampling,
            generated=generated,
            redraw=request.canvas.known.redraw if request.canvas else every_cell,
            chunk=request.chunk,
            progress=request.progress,
        )
    device = image_tokenizer.device

    def decode(rows: Tensor) -> Tensor:
        if decoded is not None:
            return torch.stack([decoded[row] for row in rows.tolist()])
        return image_tokenizer.decode(generated.image_ids[rows.to(generated.image_ids.device)].to(device), tile)

    candidates = rank_candidates(request, generated, decode)
    picture = request.canvas.picture if request.canvas else None
    settings = {**source, **request.metadata}
    embed = request.prompt_ids.image_embed
    return Result(request.prompt, request.negative, candidates, settings, picture, embed)


def most_diverse(scores: Tensor, embed: Tensor, weight: float, count: int) -> list[int]:
    """Indices of good candidates that are unlike each other (maximal marginal relevance, Carbonell and Goldstein 1998).

    The first is the best one. Each further one has the highest score, less `weight` times its cosine with the most
    similar candidate before it; candidates that equal one before come last. As no value depends on the candidates that
    are not taken, those that are taken come in the same order when they are drawn again alone.

    Args:
        scores: (n,); candidates whose score is not a number come last.
        embed: (n, D) of the pictures, normalised.
        weight: what a cosine of 1 costs, in units of the scores.
        count: how many to take at most.
    """
    left = torch.where(scores.isfinite(), scores, -torch.inf)
    nearest = torch.full_like(scores, -torch.inf)
    order: list[int] = []
    while len(order) < count and bool(left.isfinite().any()):
        values = left - weight * nearest if order else left
        order.append(int(best_first(values)[0]))
        cosines = (embed @ embed[order[-1]]).to(scores)
        nearest = torch.maximum(nearest, cosines)
        left[cosines > EQUAL] = -torch.inf
        left[order[-1]] = -torch.inf
    return [*order, *(index for index in best_first(scores).tolist() if index not in order)][:count]


def _cosines(request: GenerationRequest, scorer: Scorer, embed: Tensor) -> Tensor:
    """Cosine (n,) of pictures, embedded (n, D), with the prompt; without prompt with the image embedding, if any.

    The image embedding means nothing to another scorer than the checkpoint's own.
    """
    image_embed = torch.tensor(request.prompt_ids.image_embed)
    if request.prompt or not len(image_embed) or request.scorer_source:
        return embed @ scorer.embed_texts([clean_caption(request.prompt)])[0]
    return embed @ F.normalize(image_embed, dim=0)


def _cosine_scale(scorer: Scorer, sampling: SamplingConfig) -> float:
    """What a scorer's cosines are multiplied by in the ranking."""
    return sampling.clip_weight * scorer.scale if sampling.rank == "both" else 1.0


def _ranking_scores(request: GenerationRequest, generated: GeneratedIds, embed: Tensor | None) -> Tensor:
    """Score of each candidate, (n,), the higher the better; see `DalleMini.generate`.

    Args:
        request: gives ranking and scorer.
        generated: all candidates.
        embed: (n, D), the scorer's embeddings of their pictures; None without a scorer.
    """
    log_likelihood = generated.log_likelihood.cpu()
    if request.scorer is None or embed is None:
        return log_likelihood
    cosines = _cosines(request, request.scorer, embed)
    scaled = _cosine_scale(request.scorer, request.sampling) * cosines
    return log_likelihood + scaled if request.sampling.rank == "both" else scaled
