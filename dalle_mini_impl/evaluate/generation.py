"""R-precision of generated pictures: is what was drawn for a prompt nearest to real art of that very concept?

Pictures for prompts in the words of the captions are matched against the real art of every concept by every
vendor of both splits (R-precision as in Xu et al. 2018, with pictures of the concepts in place of texts). A
generated or reconstructed picture may be matched to any vendor's art, its own pair's included. Real art is
matched against the other vendors' art alone, which is the ceiling for a picture in an unseen style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.evaluate.intervals import TOP, ShareRow, share
from dalle_mini_impl.evaluate.r_precision import RPrecision, has_other_art
from dalle_mini_impl.evaluate.reference_pictures import ReferencePictures, prompt_of
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What to measure."""

    pairs: int = 100
    """Captioned pairs of each split to draw for; all where there are fewer."""
    candidates: int = 16
    """N, pictures per prompt."""
    kinds: tuple[str, ...] = ("plain",)
    """Kinds of pictures to ask for, those in the model's training; the bank holds every kind."""
    seed: int = 0
    """Chooses the pairs and the candidates."""
    languages: tuple[str, ...] = ()
    """Languages to draw the held-out pairs in besides English."""
    temperatures: tuple[float, ...] = ()
    """Temperatures of the sweep; empty for none."""
    guidances: tuple[float, ...] = ()
    """Guidance scales of the sweep."""
    sweep_pairs: int = 40
    """Held-out pairs of the sweep, others than those reported, so that what it chooses flatters no figure."""


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """A model, and everything its pictures are judged by."""

    dalle: DalleMini
    art: ReferencePictures
    banks: dict[str, RPrecision]
    """By the judge's name; the first one's word counts when settings are chosen."""
    settings: GenerationSettings


@dataclass(frozen=True, eq=False)
class Drawing:
    """Pictures for several prompts, and where their own concepts came."""

    results: list[Result]
    ranks: dict[str, Tensor]
    """Judge -> (prompts, N) int64, best-scored candidate first; 0 is a hit at the first place."""

    @property
    def is_ranked(self) -> bool:
        """Whether a scorer ordered the candidates."""
        return self.results[0][0].score is not None


@dataclass(frozen=True)
class SweepCell:
    """Quality at one setting."""

    temperature: float
    guidance: float
    rows: list[ShareRow]
    """Mean of the candidates, then the best-ranked one where there is a scorer."""

    @property
    def merit(self) -> float:
        """What the best setting has most of: mean of top-1 and top-5 by the first judge."""
        shares = next(iter(self.rows[-1].shares.values()))
        return sum(value.value for value in shares) / len(shares)


def check(art: ReferencePictures, settings: GenerationSettings) -> None:
    """Refuse settings that the art cannot serve, before hours are spent on others.

    Raises:
        UserError: a split has no such picture, the sweep has no pairs of its own, or a language no caption.
    """
    pick(art, settings, "train", settings.pairs)
    held_out = pick(art, settings, "validation", settings.pairs)
    if settings.temperatures:
        pick(art, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    entries = [art.store.entries[number] for number in held_out]
    for language in settings.languages:
        if all(prompt_of(entry, language) is None for entry in entries):
            raise UserError(f"no held-out picture has a caption in language {language!r}; choose one the captions have")


def pick(art: ReferencePictures, settings: GenerationSettings, split: str, count: int, skip: int = 0) -> list[int]:
    """Numbers of `count` pictures of a split, drawn at random after the first `skip` drawn.

    Raises:
        UserError: none is left.
    """
    numbers = art.numbers(split, settings.kinds)
    order = np.random.default_rng(settings.seed).permutation(len(numbers))
    chosen = [numbers[place] for place in order[skip : skip + count]]
    if not chosen:
        raise UserError(
            f"{split} has {len(numbers)} pictures of kind {', '.join(settings.kinds)}, and more "
            f"than {skip} are needed; take fewer pairs or other kinds"
        )
    return chosen


def make_row(name: str, ranks: dict[str, Tensor]) -> ShareRow:
    """Share of hits at top-1 and top-5 from ranks (pairs,) or (pairs, N), which are averaged over N."""
    shares = {}
    for judge, places in ranks.items():
        hits = [(places < k).double().reshape(len(places), -1).mean(1).tolist() for k in TOP]
        shares[judge] = tuple(share(values) for values in hits)
    return ShareRow(name, len(next(iter(ranks.values()))), shares)


def real_rows(context: EvaluationContext) -> list[ShareRow]:
    """The ceiling: real art of each vendor, then that of the held-out pairs, among the other vendors' art."""
    art, kinds = context.art, context.settings.kinds
    both = torch.tensor(art.numbers("train", kinds) + art.numbers("validation", kinds))
    groups = [(f"real art, {name}", both[art.vendors[both] == n]) for n, name in enumerate(art.vendor_names)]
    groups.append(("real art, held-out pairs", torch.tensor(art.numbers("validation", kinds))))
    findable = has_other_art(art.concepts, art.vendors)
    rows = []
    for name, numbers in groups:
        numbers = numbers[findable[numbers]]
        features = {judge: bank.features[numbers] for judge, bank in context.banks.items()}
        if len(numbers):
            rows.append(make_row(name, _ranks(context, features, numbers, leave_out=True)))
    return rows


def reconstruction_rows(context: EvaluationContext) -> list[ShareRow]:
    """Held-out pictures through the image tokenizer, among all art and among the other vendors' art."""
    art = context.art
    numbers = torch.tensor(art.numbers("validation", context.settings.kinds))
    features: dict[str, list[Tensor]] = {judge: [] for judge in context.banks}
    for chunk in tqdm(numbers.split(CHUNK), desc="reconstructions", delay=2, leave=False):
        pixels = reconstruct(context.dalle, art.pixels(chunk.tolist()))
        for judge, bank in context.banks.items():
            features[judge].append(bank.see(pixels))
    seen = {judge: torch.cat(parts) for judge, parts in features.items()}
    rows = [make_row("reconstructions, held-out pairs", _ranks(context, seen, numbers, leave_out=False))]
    findable = has_other_art(art.concepts, art.vendors)[numbers]
    if findable.any():
        seen = {judge: values[findable] for judge, values in seen.items()}
        ranks = _ranks(context, seen, numbers[findable], leave_out=True)
        rows.append(make_row("  the same among other vendors' art", ranks))
    return rows


def reconstruct(dalle: DalleMini, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) -> what is left of them after encoding and decoding, the same shape, on the CPU."""
    tokenizer = dalle.image_tokenizer
    return tokenizer.decode(tokenizer.encode(pixels.to(tokenizer.device))).cpu()


def draw(
    context: EvaluationContext,
    numbers: Sequence[int],
    name: str,
    language: str = "en",
    styled: bool = True,
    **sampling: Any,
) -> Drawing:
    """Draw candidates for pictures' captions and find their own concepts' places.

    Args:
        context: model, art and judges.
        numbers: pictures whose captions are the prompts.
        name: what the progress bar says.
        language: of the prompts; pictures without a caption in it are left out.
        styled: whether prompts name the vendor's style.
        **sampling: other settings than the model's own, as for `DalleMini.generate`.
    """
    settings, results = context.settings, []
    ranks: dict[str, list[Tensor]] = {judge: [] for judge in context.banks}
    for place, number in enumerate(tqdm(numbers, desc=name, unit=" prompts", delay=2, leave=False)):
        prompt = prompt_of(context.art.store.entries[number], language, styled)
        if prompt is None:
            continue
        # The seed follows from the pair's place, so languages and settings are compared on the same noise.
        seed = candidate_seed(settings.seed, place)
        results.append(context.dalle.generate(prompt, settings.candidates, settings.candidates, seed, **sampling))
        pixels = to_pixels([candidate.image for candidate in results[-1]], context.art.size)
        for judge, bank in context.banks.items():
            ranks[judge].append(bank.ranks(bank.see(pixels), context.art.concepts[number].expand(len(pixels))))
    return Drawing(results, {judge: torch.stack(parts) for judge, parts in ranks.items()})


def drawing_rows(name: str, drawing: Drawing) -> list[ShareRow]:
    """Mean of the candidates, and the best-ranked one where there is a scorer."""
    count = len(drawing.results[0])
    rows = [make_row(f"{name}, mean of {count}", drawing.ranks)]
    if drawing.is_ranked:
        best = {judge: ranks[:, 0] for judge, ranks in drawing.ranks.items()}
        rows.append(make_row(f"{name}, best of {count}", best))
    return rows


def generation_rows(context: EvaluationContext) -> tuple[list[ShareRow], Drawing]:
    """Generated pictures of seen and held-out pairs, without style word, and in other languages.

    Returns:
        The rows, and the pictures of the held-out pairs.
    """
    settings = context.settings
    held_out = pick(context.art, settings, "validation", settings.pairs)
    drawing = draw(context, held_out, "held-out pairs")
    rows = drawing_rows("seen pairs", draw(context, pick(context.art, settings, "train", settings.pairs), "seen pairs"))
    rows += drawing_rows("held-out pairs", drawing)
    rows += drawing_rows("  no style word", draw(context, held_out, "no style word", styled=False))
    for language in settings.languages:
        rows += drawing_rows(f"  in {language}", draw(context, held_out, f"in {language}", language))
    return rows, drawing


def sweep(context: EvaluationContext) -> list[SweepCell]:
    """Quality at every temperature and guidance scale, on held-out pairs that no other figure uses."""
    settings, cells = context.settings, []
    if not settings.temperatures:
        return []
    numbers = pick(context.art, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    for temperature in settings.temperatures:
        for guidance in settings.guidances:
            name = f"temperature {temperature:g}, guidance {guidance:g}"
            drawing = draw(context, numbers, name, temperature=temperature, guidance=guidance)
            cells.append(SweepCell(temperature, guidance, drawing_rows(name, drawing)))
    return cells


def _ranks(
    context: EvaluationContext, features: dict[str, Tensor], numbers: Tensor, leave_out: bool
) -> dict[str, Tensor]:
    own = context.art.vendors[numbers] if leave_out else None
    concepts = context.art.concepts[numbers]
    return {judge: bank.ranks(features[judge], concepts, own) for judge, bank in context.banks.items()}
