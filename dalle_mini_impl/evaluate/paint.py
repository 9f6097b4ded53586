"""What painting gains: pictures before and after, by a scorer that had no say in them and by the judges.

A picture that was made to please one scorer pleases it whatever it shows. So it counts what another scorer, trained
from another seed, and the judges make of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.evaluate.generation import CHUNK, EvaluationContext, make_row, pick
from dalle_mini_impl.evaluate.intervals import TOP, Share, ShareRow, cell, share
from dalle_mini_impl.evaluate.reference_pictures import prompt_of
from dalle_mini_impl.painting.painter import PaintSettings, paint
from dalle_mini_impl.painting.targets import Target
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.images import to_pixels

RANDOM, PAINTED = "random latents", "painted from random"
SAMPLED, PAINTED_ON = "sampled", "painted on from the sampled"


@dataclass(frozen=True, eq=False)
class PaintEvaluation:
    """Who judges, and how to paint."""

    guide: Scorer
    """Is followed."""
    second: Scorer
    """Only looks on."""
    settings: PaintSettings
    """Of both ways to paint; the init weight is that of painting on, and seeds follow from the evaluation's."""
    latents: int = 64
    """Random latents per prompt."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What everyone makes of a group of pictures, N for each prompt."""

    name: str
    guide: Tensor
    """(prompts, N) cosines."""
    second: Tensor
    """(prompts, N) cosines."""
    ranks: dict[str, Tensor]
    """Judge -> (prompts, N) int64; 0 is a hit at the first place."""

    @property
    def row(self) -> ShareRow:
        """Share of hits."""
        return make_row(self.name, self.ranks)

    @property
    def median_places(self) -> dict[str, float]:
        """Judge -> where the prompts' own concepts come among all, 1 being the first; half of them come no later."""
        return {judge: float(places.double().median()) + 1 for judge, places in self.ranks.items()}

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON takes it; the means of N pictures where there are several."""
        cosines = {name: getattr(self, name).double().mean(1).tolist() for name in ("guide", "second")}
        return {**asdict(self.row), "median_places": self.median_places, **cosines}


def measure(context: EvaluationContext, plan: PaintEvaluation) -> list[Measured]:
    """Make and judge pictures for held-out prompts.

    Returns:
        Random latents, the best of them by the guide, painted pictures, sampled ones, and those painted on.
    """
    seen: dict[str, list[Measured]] = {}
    numbers = pick(context.art, context.settings, "validation", context.settings.pairs)
    for place, number in enumerate(tqdm(numbers, desc="painting", unit=" prompts", delay=2, leave=False)):
        prompt = prompt_of(context.art.store.entries[number])
        if prompt is None:
            continue
        concept = context.art.concepts[number]
        for name, images in make(context, plan, prompt, candidate_seed(context.settings.seed, place)).items():
            seen.setdefault(name, []).append(look(context, plan, name, images, prompt, concept))
    random, painted, sampled, painted_on = (join(seen[name]) for name in (RANDOM, PAINTED, SAMPLED, PAINTED_ON))
    return [
        replace(random, name=f"{RANDOM}, mean of {plan.latents}"),
        best(random, f"{RANDOM}, best of {plan.latents}"),
        painted,
        sampled,
        painted_on,
    ]


def make(context: EvaluationContext, plan: PaintEvaluation, prompt: str, seed: int) -> dict[str, list[Image.Image]]:
    """Every group's pictures for one prompt."""
    tokenizer, settings = context.dalle.image_tokenizer, replace(plan.settings, seed=seed)
    shape = (plan.latents, *tokenizer.config.grid)
    ids = torch.randint(tokenizer.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
    latents = [image for part in ids.split(CHUNK) for image in context.dalle.decode(part)]
    sampled = context.dalle.generate(prompt, context.settings.candidates, 1, seed)[0]
    who, what = {"guide": plan.guide}, [Target(prompt)]  # a caption's colons are no weights
    painted = paint(tokenizer, who, what, replace(settings, init_weight=0.0))
    painted_on = paint(tokenizer, who, what, settings, sampled.image_ids)
    return {RANDOM: latents, PAINTED: [painted.image], SAMPLED: [sampled.image], PAINTED_ON: [painted_on.image]}


def look(
    context: EvaluationContext,
    plan: PaintEvaluation,
    name: str,
    images: Sequence[Image.Image],
    prompt: str,
    concept: Tensor,
) -> Measured:
    """Show pictures of one prompt to everyone."""
    pixels = to_pixels(images, context.art.size)
    ranks = {judge: bank.ranks(bank.see(pixels), concept.expand(len(pixels))) for judge, bank in context.banks.items()}
    guide, second = (scorer.cosines(images, prompt)[None] for scorer in (plan.guide, plan.second))
    return Measured(name, guide, second, {judge: places[None] for judge, places in ranks.items()})


def best(seen: Measured, name: str) -> Measured:
    """The one that the guide likes best of each prompt's pictures."""
    first = seen.guide.argmax(1, keepdim=True)
    ranks = {judge: places.gather(1, first) for judge, places in seen.ranks.items()}
    return Measured(name, seen.guide.gather(1, first), seen.second.gather(1, first), ranks)


def join(parts: Sequence[Measured]) -> Measured:
    """One group of several prompts."""
    ranks = {judge: torch.cat([part.ranks[judge] for part in parts]) for judge in parts[0].ranks}
    guide, second = (torch.cat([getattr(part, name) for part in parts]) for name in ("guide", "second"))
    return Measured(parts[0].name, guide, second, ranks)


def wins(groups: Sequence[Measured]) -> dict[str, Share]:
    """Share of prompts for which the second scorer likes the painted picture better than what it is compared with."""
    _, best_random, painted, sampled, painted_on = groups
    pairs = ((painted, best_random), (painted_on, sampled))
    return {f"{a.name} > {b.name}": share((a.second > b.second)[:, 0].double().tolist()) for a, b in pairs}


def figures(seen: Measured) -> dict[str, str]:
    """Cells of a table's row."""
    hits = {
        f"{judge} top-{k}": cell(value)
        for judge, shares in seen.row.shares.items()
        for k, value in zip(TOP, shares, strict=True)
    }
    cosines = {"guide's cosine": seen.guide, "second's cosine": seen.second}
    means = {name: f"{float(value.mean()):.3f}" for name, value in cosines.items()}
    places = {f"{judge} median place": f"{place:.0f}" for judge, place in seen.median_places.items()}
    return {"pictures": seen.name, **means, **hits, **places}
