"""R-precision of generated pictures: is a picture nearest to the real pictures of the concept in its prompt?

Prompts are captions of the reference set, and each picture is matched to the reference pictures of every concept, by
every vendor, of both splits (see `r_precision`). Generated and reconstructed pictures may match any vendor's pictures,
those of their own pair included. Real pictures are matched to the other vendors' pictures only, which gives the
ceiling for a picture in an unseen style.

In a set without vendors (see `reference_pictures`) concepts are captions, each of which is drawn once, and a real
picture is matched to all others. The ceiling there is what the image tokenizer keeps of the real pictures.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.evaluate.intervals import TOP_K, ShareRow, mean_share
from dalle_mini_impl.evaluate.r_precision import RPrecision, has_other_vendor
from dalle_mini_impl.evaluate.reference_pictures import ReferencePictures, prompt_of
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images, to_pixels

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What to measure."""

    pairs: int = 100
    """Captioned pairs of each split to generate pictures for; all where there are fewer."""
    candidates: int = 16
    """N, pictures per prompt."""
    kinds: tuple[str, ...] = ("plain",)
    """Kinds of pictures whose captions are prompts, those the model was trained on. References are of every kind."""
    seed: int = 0
    """Determines the sampled pairs and the candidates."""
    languages: tuple[str, ...] = ()
    """Languages besides English to generate the held-out pairs in."""
    temperatures: tuple[float, ...] = ()
    """Temperatures of the sweep; empty for no sweep."""
    guidances: tuple[float, ...] = ()
    """Guidance scales of the sweep."""
    sweep_pairs: int = 40
    """Held-out pairs of the sweep, disjoint from `pairs`: settings chosen by the sweep bias no reported figure."""


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """A model and everything its pictures are measured by."""

    dalle: DalleMini
    reference: ReferencePictures
    r_precisions: dict[str, RPrecision]
    """By the judge's name; the first one decides where settings are chosen."""
    settings: GenerationSettings


@dataclass(frozen=True, eq=False)
class GeneratedPictures:
    """Candidates for several prompts, and the ranks of their own concepts."""

    results: list[Result]
    indices: list[int]
    """Of the reference pictures whose captions are the prompts."""
    features: dict[str, Tensor]
    """Judge -> (prompts, N, d), see `RPrecision.features_of`; candidates as in `ranks`."""
    ranks: dict[str, Tensor]
    """Judge -> (prompts, N) int64, candidates in the order of the results, best-scored first; 0 is a top-1 hit."""
    seconds: list[float] = field(default_factory=list)
    """Of each prompt, from text to ranked pictures."""

    @property
    def is_ranked(self) -> bool:
        """Whether a scorer ordered the candidates."""
        return self.results[0][0].score is not None


@dataclass(frozen=True)
class SweepResult:
    """R-precision at one setting."""

    temperature: float
    guidance: float
    rows: list[ShareRow]
    """Mean of the candidates, then the best-ranked one where there is a scorer."""

    @property
    def objective(self) -> float:
        """What the best setting maximises: mean of top-1 and top-5 of the last row by the first judge."""
        shares = next(iter(self.rows[-1].shares.values()))
        return sum(share.value for share in shares) / len(shares)


def check_settings(reference: ReferencePictures, settings: GenerationSettings) -> None:
    """Refuse settings that the reference pictures cannot serve, before any picture is generated.

    Raises:
        UserError: a split has no picture of these kinds, the sweep has no pairs of its own, or a language no caption.
    """
    sampled = [
        sample_indices(reference, settings, split, settings.pairs)
        for split in ("train", "validation")
        if reference.has_split(split)
    ]
    if settings.temperatures:
        sample_indices(reference, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    entries = [reference.store.entries[index] for index in sampled[-1]]
    for language in settings.languages:
        if all(prompt_of(entry, language) is None for entry in entries):
            raise UserError(
                f"expected languages of the held-out captions, got {language!r}, in which there is none; "
                f"choose another language"
            )


def sample_indices(
    reference: ReferencePictures, settings: GenerationSettings, split: str, count: int, skip: int = 0
) -> list[int]:
    """Indices of `count` random pictures of a split, after the first `skip` of the same random order.

    In a set without vendors no two of them have the same caption.

    Raises:
        UserError: none is left.
    """
    indices = reference.indices(split, settings.kinds)
    order = np.random.default_rng(settings.seed).permutation(len(indices))
    shuffled = [indices[number] for number in order]
    if not reference.has_vendors:
        first: dict[int, int] = {}
        for index in shuffled:
            first.setdefault(int(reference.concept_ids[index]), index)
        shuffled = list(first.values())
    sampled = shuffled[skip : skip + count]
    if not sampled:
        raise UserError(
            f"expected more than {skip} pictures of kind {', '.join(settings.kinds)} in split {split}, "
            f"got {len(indices)}; take fewer pairs or other kinds"
        )
    return sampled


def share_row(name: str, ranks: dict[str, Tensor]) -> ShareRow:
    """Fraction of hits at each depth from ranks (pairs,) or (pairs, N), averaged over N first."""
    shares = {}
    for judge, judge_ranks in ranks.items():
        hits = [(judge_ranks < k).double().reshape(len(judge_ranks), -1).mean(1).tolist() for k in TOP_K]
        shares[judge] = tuple(mean_share(values) for values in hits)
    return ShareRow(name, len(next(iter(ranks.values()))), shares)


def reference_rows(context: EvaluationContext) -> list[ShareRow]:
    """The ceiling: real pictures of each vendor, then of the held-out pairs, among the other vendors' pictures."""
    reference = context.reference
    kinds = context.settings.kinds
    both_splits = torch.tensor(
        reference.indices("train", kinds) + reference.indices("validation", kinds), dtype=torch.int64
    )
    held_out = torch.tensor(reference.indices("validation", kinds), dtype=torch.int64)
    groups = [
        (f"real art, {name}", both_splits[reference.vendor_ids[both_splits] == vendor_id])
        for vendor_id, name in enumerate(reference.vendor_names)
    ]
    if reference.has_vendors:
        groups.append(("real art, held-out pairs", held_out))
    else:
        groups += [("real pictures, each among the others", both_splits), ("  held-out ones", held_out)]
    matchable = has_other_vendor(reference.concept_ids, reference.vendor_ids)
    rows = []
    for name, indices in groups:
        indices = indices[matchable[indices]]
        features = {judge: measure.reference_features[indices] for judge, measure in context.r_precisions.items()}
        if len(indices):
            rows.append(share_row(name, _ranks(context, features, indices, exclude_own_vendor=True)))
    return rows


def reconstruction_rows(context: EvaluationContext) -> list[ShareRow]:
    """Reconstructions of pictures, among all reference pictures and among the other vendors'.

    Of the held-out pictures; in a set without vendors of those whose captions are drawn, of both splits.
    """
    reference, settings = context.reference, context.settings
    if reference.has_vendors:
        return _reconstruction_rows(context, "held-out pairs", reference.indices("validation", settings.kinds))
    rows = []
    for name, split in (("seen captions", "train"), ("held-out captions", "validation")):
        if reference.has_split(split):
            rows += _reconstruction_rows(context, name, sample_indices(reference, settings, split, settings.pairs))
    return rows


def _reconstruction_rows(context: EvaluationContext, name: str, chosen: Sequence[int]) -> list[ShareRow]:
    reference = context.reference
    picture_size = context.dalle.image_tokenizer.config.size
    indices = torch.tensor(chosen)
    parts: dict[str, list[Tensor]] = {judge: [] for judge in context.r_precisions}
    for chunk in tqdm(indices.split(BATCH_SIZE), desc="reconstructions", delay=2, leave=False):
        images = to_images(reconstruct(context.dalle, reference.pixels(chunk.tolist(), picture_size)))
        pixels = to_pixels(images, reference.size)
        for judge, measure in context.r_precisions.items():
            parts[judge].append(measure.features_of(pixels))
    features = {judge: torch.cat(judge_parts) for judge, judge_parts in parts.items()}
    ranks = _ranks(context, features, indices, exclude_own_vendor=False)
    rows = [share_row(f"reconstructions, {name}", ranks)]
    matchable = has_other_vendor(reference.concept_ids, reference.vendor_ids)[indices]
    if matchable.any():
        features = {judge: values[matchable] for judge, values in features.items()}
        ranks = _ranks(context, features, indices[matchable], exclude_own_vendor=True)
        others = "other vendors' art" if reference.has_vendors else "the other pictures"
        rows.append(share_row(f"  the same among {others}", ranks))
    return rows


def reconstruct(dalle: DalleMini, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> encoded and decoded by the image tokenizer, the same shape, on the CPU."""
    tokenizer = dalle.image_tokenizer
    return tokenizer.decode(tokenizer.encode(pixels.to(tokenizer.device))).cpu()


def generate_pictures(
    context: EvaluationContext,
    indices: Sequence[int],
    description: str,
    language: str = "",
    with_style: bool = True,
    of_picture: Callable[[int], Mapping[str, Any]] = lambda index: {},
    **sampling: Any,
) -> GeneratedPictures:
    """Generate candidates for captions of reference pictures, and rank their own concepts.

    Args:
        context: model, reference pictures and judges.
        indices: pictures whose captions are the prompts.
        description: text of the progress bar.
        language: of the prompts; pictures without a caption in it are left out. Empty for that of `first_caption`.
        with_style: whether prompts name the vendor's style.
        of_picture: arguments of `DalleMini.generate` that differ from picture to picture, by its index.
        **sampling: settings that differ from the model's own, as for `DalleMini.generate`.
    """
    settings = context.settings
    reference = context.reference
    results = []
    drawn: list[int] = []
    seconds: list[float] = []
    features: dict[str, list[Tensor]] = {judge: [] for judge in context.r_precisions}
    ranks: dict[str, list[Tensor]] = {judge: [] for judge in context.r_precisions}
    for number, index in enumerate(tqdm(indices, desc=description, unit=" prompts", delay=2, leave=False)):
        prompt = prompt_of(reference.store.entries[index], language, with_style)
        if prompt is None:
            continue
        # The seed depends on the pair's position only, so that languages and settings are compared on the same noise.
        seed = candidate_seed(settings.seed, number)
        counts = {"candidates": settings.candidates, "keep": settings.candidates, "seed": seed}
        # Judges see grounds as they were drawn.
        arguments = {"prompt": prompt, **counts, "transparent": False, **sampling, **of_picture(index)}
        start = time.perf_counter()
        result = context.dalle.generate(**arguments)
        seconds.append(time.perf_counter() - start)
        results.append(result)
        drawn.append(index)
        pixels = to_pixels([candidate.image for candidate in result], reference.size)
        concept_ids = reference.concept_ids[index].expand(len(pixels))
        for judge, measure in context.r_precisions.items():
            features[judge].append(measure.features_of(pixels))
            ranks[judge].append(measure.ranks(features[judge][-1], concept_ids))
    stacked = [{judge: torch.stack(parts) for judge, parts in values.items()} for values in (features, ranks)]
    return GeneratedPictures(results, drawn, stacked[0], stacked[1], seconds)


def generated_rows(name: str, pictures: GeneratedPictures) -> list[ShareRow]:
    """Mean of the candidates, and the best-ranked one where there is a scorer."""
    count = len(pictures.results[0])
    rows = [share_row(f"{name}, mean of {count}", pictures.ranks)]
    if pictures.is_ranked:
        best = {judge: ranks[:, 0] for judge, ranks in pictures.ranks.items()}
        rows.append(share_row(f"{name}, best of {count}", best))
    return rows


def generation_rows(context: EvaluationContext) -> tuple[list[ShareRow], dict[str, GeneratedPictures]]:
    """Generated pictures of training and held-out pairs, without style word, and in other languages.

    Returns:
        The rows, and the pictures of seen and held-out pairs by name.
    """
    reference, settings = context.reference, context.settings
    noun = "pairs" if reference.has_vendors else "captions"
    pictures = {}
    for name, split in ((f"seen {noun}", "train"), (f"held-out {noun}", "validation")):
        if reference.has_split(split):
            indices = sample_indices(reference, settings, split, settings.pairs)
            pictures[name] = generate_pictures(context, indices, name)
    rows = [row for name in pictures for row in generated_rows(name, pictures[name])]
    held_out = pictures.get(f"held-out {noun}")
    if held_out is None:
        return rows, pictures
    if reference.has_vendors:
        without_style = generate_pictures(context, held_out.indices, "no style word", with_style=False)
        rows += generated_rows("  no style word", without_style)
        twin_free = [bool(reference.store.entries[index].details.get("twin_free")) for index in held_out.indices]
        rows += part_rows("  without near twins in training", held_out, torch.tensor(twin_free))
    else:
        seen = set(reference.concept_ids[reference.of_split("train")].tolist())
        new = [int(reference.concept_ids[index]) not in seen for index in held_out.indices]
        rows += part_rows("  of these, new captions", held_out, torch.tensor(new))
    for language in settings.languages:
        rows += generated_rows(f"  in {language}", generate_pictures(context, held_out.indices, language, language))
    return rows, pictures


def part_rows(name: str, pictures: GeneratedPictures, part: Tensor) -> list[ShareRow]:
    """Rows of a part (prompts,) bool of the prompts, where it is neither none nor all."""
    if part.all() or not part.any():
        return []
    chosen = part.nonzero()[:, 0].tolist()
    return generated_rows(
        name,
        GeneratedPictures(
            [pictures.results[number] for number in chosen],
            [pictures.indices[number] for number in chosen],
            {judge: values[part] for judge, values in pictures.features.items()},
            {judge: values[part] for judge, values in pictures.ranks.items()},
        ),
    )


def nearest_training_pictures(context: EvaluationContext, pictures: dict[str, GeneratedPictures]) -> dict[str, float]:
    """How near pictures are to the nearest one of the training split: median cosine of the first judge's features.

    A model that recites draws pictures nearer to those of the training split than real held-out pictures are.

    Returns:
        By name: the best-ranked pictures of `pictures`, then the real held-out pictures.
    """
    reference = context.reference
    judge, measure = next(iter(context.r_precisions.items()))
    train, held_out = reference.of_split("train"), reference.of_split("validation")
    if not train.any():
        return {}
    groups = {f"drawn, {name}": values.features[judge][:, 0] for name, values in pictures.items()}
    if held_out.any():
        groups["real held-out pictures"] = measure.reference_features[held_out]
    training = measure.reference_features[train].T
    return {name: float((features @ training).amax(1).median()) for name, features in groups.items()}


def sweep(context: EvaluationContext) -> list[SweepResult]:
    """R-precision at every temperature and guidance scale, on held-out pairs that no other figure uses."""
    settings = context.settings
    if not settings.temperatures:
        return []
    results = []
    indices = sample_indices(context.reference, settings, "validation", settings.sweep_pairs, skip=settings.pairs)
    for temperature in settings.temperatures:
        for guidance in settings.guidances:
            name = f"temperature {temperature:g}, guidance {guidance:g}"
            pictures = generate_pictures(context, indices, name, temperature=temperature, guidance=guidance)
            results.append(SweepResult(temperature, guidance, generated_rows(name, pictures)))
    return results


def _ranks(
    context: EvaluationContext, features: dict[str, Tensor], indices: Tensor, exclude_own_vendor: bool
) -> dict[str, Tensor]:
    """Judge -> ranks (len(indices),) of the own concepts of reference pictures, or of versions of them."""
    concept_ids = context.reference.concept_ids[indices]
    excluded = context.reference.vendor_ids[indices] if exclude_own_vendor else None
    return {
        judge: measure.ranks(features[judge], concept_ids, excluded) for judge, measure in context.r_precisions.items()
    }
