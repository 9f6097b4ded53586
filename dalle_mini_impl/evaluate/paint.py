"""What painting (VQGAN+CLIP) gains: pictures before and after, by the judges and by a scorer that did not guide it.

A picture optimised for one scorer scores high by that scorer whatever it shows. So the results that count are those of
the judges and of a second scorer, for example one trained from another seed.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.evaluate.generation import BATCH_SIZE, EvaluationContext, sample_indices, share_row
from dalle_mini_impl.evaluate.intervals import TOP_K, Share, ShareRow, format_share, mean_share
from dalle_mini_impl.evaluate.reference_pictures import prompt_of
from dalle_mini_impl.painting.painter import PaintSettings, paint
from dalle_mini_impl.painting.targets import Target
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.images import to_pixels
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.ranking import best_first

RANDOM = "random latents"
PAINTED = "painted from random"
SAMPLED = "sampled"
PAINTED_ON = "painted on from the sampled"


@dataclass(frozen=True, eq=False)
class PaintEvaluation:
    """Which scorers guide and measure, and how to paint."""

    guide: Scorer
    """Guides the painting."""
    second: Scorer
    """Measures only."""
    settings: PaintSettings
    """Of both kinds of painting; the init weight is that of painting on a sampled picture, seeds are replaced."""
    latents: int = 64
    """Random latents per prompt."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements of a group of pictures, N per prompt."""

    name: str
    guide: Tensor
    """(prompts, N) cosines by the guiding scorer."""
    second: Tensor
    """(prompts, N) cosines by the second scorer."""
    ranks: dict[str, Tensor]
    """Judge -> (prompts, N) int64, see `RPrecision.ranks`; 0 is a top-1 hit."""

    @property
    def row(self) -> ShareRow:
        """R-precision."""
        return share_row(self.name, self.ranks)

    @property
    def median_ranks(self) -> dict[str, float]:
        """Judge -> lower median of the rank of the prompts' own concepts, counted from 1."""
        return {judge: float(ranks.double().median()) + 1 for judge, ranks in self.ranks.items()}

    def as_json(self) -> dict[str, Any]:
        """All measurements as plain values; cosines are means over the N pictures of each prompt."""
        cosines = {name: getattr(self, name).double().mean(1).tolist() for name in ("guide", "second")}
        return {**asdict(self.row), "median_ranks": self.median_ranks, **cosines}


def measure_painting(context: EvaluationContext, evaluation: PaintEvaluation) -> list[Measured]:
    """Make and measure pictures for held-out prompts.

    Returns:
        Random latents, the best of them by the guide, painted pictures, sampled ones, and those painted on.
    """
    parts: dict[str, list[Measured]] = {}
    indices = sample_indices(context.reference, context.settings, "validation", context.settings.pairs)
    for number, index in enumerate(tqdm(indices, desc="painting", unit=" prompts", delay=2, leave=False)):
        prompt = prompt_of(context.reference.store.entries[index])
        if prompt is None:
            continue
        concept_id = context.reference.concept_ids[index]
        pictures = make_pictures(context, evaluation, prompt, candidate_seed(context.settings.seed, number))
        for name, images in pictures.items():
            parts.setdefault(name, []).append(measure_pictures(context, evaluation, name, images, prompt, concept_id))
    random, painted, sampled, painted_on = (concatenate(parts[name]) for name in (RANDOM, PAINTED, SAMPLED, PAINTED_ON))
    return [
        replace(random, name=f"{RANDOM}, mean of {evaluation.latents}"),
        best_by_guide(random, f"{RANDOM}, best of {evaluation.latents}"),
        painted,
        sampled,
        painted_on,
    ]


def make_pictures(
    context: EvaluationContext, evaluation: PaintEvaluation, prompt: str, seed: int
) -> dict[str, list[Image.Image]]:
    """Pictures of every group for one prompt."""
    tokenizer = context.dalle.image_tokenizer
    settings = replace(evaluation.settings, seed=seed)
    shape = (evaluation.latents, *tokenizer.config.grid)
    latent_bytes = math.prod(tokenizer.config.grid) * (8 + 3 * tokenizer.config.factor**2)  # ids, and their picture
    check_memory(evaluation.latents * latent_bytes, f"{evaluation.latents} random latents", "take fewer")
    ids = torch.randint(tokenizer.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
    latents = [image for batch in ids.split(BATCH_SIZE) for image in context.dalle.decode(batch)]
    sampled = context.dalle.generate(prompt, context.settings.candidates, 1, seed)[0]
    scorers = {"guide": evaluation.guide}
    targets = [Target(prompt)]  # not parsed: a colon in a caption is no weight
    painted = paint(tokenizer, scorers, targets, replace(settings, init_weight=0.0))
    painted_on = paint(tokenizer, scorers, targets, settings, sampled.image_ids)
    return {RANDOM: latents, PAINTED: [painted.image], SAMPLED: [sampled.image], PAINTED_ON: [painted_on.image]}


def measure_pictures(
    context: EvaluationContext,
    evaluation: PaintEvaluation,
    name: str,
    images: Sequence[Image.Image],
    prompt: str,
    concept_id: Tensor,
) -> Measured:
    """Measure pictures of one prompt by the judges and both scorers."""
    pixels = to_pixels(images, context.reference.size)
    concept_ids = concept_id.expand(len(pixels))
    ranks = {
        judge: measure.ranks(measure.features_of(pixels), concept_ids)[None]
        for judge, measure in context.r_precisions.items()
    }
    guide = evaluation.guide.cosines(images, prompt)[None]
    second = evaluation.second.cosines(images, prompt)[None]
    return Measured(name, guide, second, ranks)


def best_by_guide(measured: Measured, name: str) -> Measured:
    """Of each prompt's pictures the one with the highest cosine by the guide."""
    best = best_first(measured.guide)[:, :1]
    ranks = {judge: values.gather(1, best) for judge, values in measured.ranks.items()}
    return Measured(name, measured.guide.gather(1, best), measured.second.gather(1, best), ranks)


def concatenate(parts: Sequence[Measured]) -> Measured:
    """Join measurements of several prompts."""
    ranks = {judge: torch.cat([part.ranks[judge] for part in parts]) for judge in parts[0].ranks}
    guide = torch.cat([part.guide for part in parts])
    second = torch.cat([part.second for part in parts])
    return Measured(parts[0].name, guide, second, ranks)


def win_shares(groups: Sequence[Measured]) -> dict[str, Share]:
    """Fraction of prompts whose painted picture has a higher cosine by the second scorer than its baseline.

    Args:
        groups: from `measure_painting`.
    """
    _, best_random, painted, sampled, painted_on = groups
    pairs = ((painted, best_random), (painted_on, sampled))
    return {f"{a.name} > {b.name}": mean_share((a.second > b.second)[:, 0].double().tolist()) for a, b in pairs}


def table_cells(measured: Measured) -> dict[str, str]:
    """Measurements as a table row: column title -> cell."""
    hits = {
        f"{judge} top-{k}": format_share(share)
        for judge, shares in measured.row.shares.items()
        for k, share in zip(TOP_K, shares, strict=True)
    }
    cosines = {"guide's cosine": measured.guide, "second's cosine": measured.second}
    means = {name: f"{float(value.mean()):.3f}" for name, value in cosines.items()}
    ranks = {f"{judge} median rank": f"{rank:.0f}" for judge, rank in measured.median_ranks.items()}
    return {"pictures": measured.name, **means, **hits, **ranks}
