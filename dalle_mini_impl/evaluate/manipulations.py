"""Variations, interpolations, text differences and inversion of held-out pictures, measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.evaluate.generation import EvaluationContext, generate_pictures, sample_indices, share_row
from dalle_mini_impl.evaluate.intervals import Mean, Share, ShareRow, mean_interval, mean_share
from dalle_mini_impl.evaluate.metrics import mean_distances
from dalle_mini_impl.evaluate.reference_pictures import prompt_of
from dalle_mini_impl.evaluate.unclip import embedding_of_picture
from dalle_mini_impl.pipeline.canvas import encode_picture
from dalle_mini_impl.pipeline.manipulations import edit, embed, mix
from dalle_mini_impl.sampling.inversion import invert, redraw
from dalle_mini_impl.sampling.requests import Prompt
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images, to_pixels


@dataclass(frozen=True)
class VariationFigures:
    """Variations of held-out pictures, drawn of their embeddings without a caption, and random pictures beside them."""

    rows: list[ShareRow]
    """How often the concept is found: in the variations, then in as many random real pictures of the same style, which
    show other things; of the whole set where it has no styles."""
    distances: dict[str, dict[str, Mean]]
    """Name of a row -> judge -> mean of 1 - cosine between the pictures of one group."""
    different: Share
    """Pictures of whose variations no two are the same."""


@dataclass(frozen=True)
class InterpolationFigures:
    """Strips from one held-out picture to another."""

    count: int
    steps: int
    """Pictures of a strip."""
    monotonic: dict[str, Share]
    """Scorer -> strips in which the cosine with the first picture never rises and that with the second never falls."""
    both: Share | None
    """Strips that are so by every scorer; None where there is one."""
    forward: dict[str, Mean]
    """Scorer -> share of a strip's steps at which the cosine with the second picture gains on that with the first."""


@dataclass(frozen=True)
class EditShares:
    """How often an edit does what its texts say, by one measure."""

    both: Share
    """The target's score rises and the source's falls."""
    target: Share
    """The target's score rises."""
    source: Share
    """The source's score falls."""
    other: Share
    """The score of a name in neither text rises: as often as a change of any kind raises one."""


@dataclass(frozen=True)
class EditFigures:
    """Held-out pictures, changed by the difference of their names and those of others."""

    count: int
    theta: float
    shares: dict[str, EditShares]
    """By scorer, and in a set with vendors by judge, whose score is the cosine with the nearest drawing by another
    vendor, of the edits whose names have one. The model's own scorer had a say, as edits follow its embeddings."""


@dataclass(frozen=True)
class InversionFigures:
    """Held-out pictures, turned into the numbers that draw them, and drawn from these."""

    count: int
    right: int
    """Pictures that come back id for id."""
    exact: Share
    """Their share."""
    different_ids: int
    """Image ids of all pictures that do not come back."""


def measure_variations(
    context: EvaluationContext, pictures: int, count: int, decoder: str = "tokens"
) -> VariationFigures:
    """Draw variations of held-out pictures.

    Args:
        context: of a model that draws of image embeddings.
        pictures: how many to vary.
        count: variations of each, at least 2.
        decoder: what draws them, one of `config.sampling.DECODERS`.

    Raises:
        UserError: the model takes no embeddings, or `count` is below 2.
    """
    if count < 2:
        raise UserError(f"expected at least 2 variations of each picture, between which distances are, got {count}")
    reference = context.reference
    indices = sample_indices(reference, context.settings, "validation", pictures)
    few = replace(context, settings=replace(context.settings, candidates=count))
    told = embedding_of_picture(reference, prompt="")
    sampling: dict[str, Any] = {"prior": "none", "rank": "none", "decoder": decoder}
    drawn = generate_pictures(few, indices, "variations", of_picture=told, **sampling)
    random = random_pictures(context, indices, count)
    concept_ids = reference.concept_ids[indices].repeat_interleave(count)
    real = {judge: measure.reference_features[random] for judge, measure in context.r_precisions.items()}
    ranks = {
        judge: measure.ranks(real[judge].flatten(0, 1), concept_ids).view(-1, count)
        for judge, measure in context.r_precisions.items()
    }
    name = "random pictures of the same style" if reference.has_vendors else "random pictures"
    groups = {"variations": drawn.features, name: real}
    distances = {
        group: {judge: mean_interval(mean_distances(values).tolist()) for judge, values in features.items()}
        for group, features in groups.items()
    }
    distinct = [{candidate.image.tobytes() for candidate in result} for result in drawn.results]
    different = _share([len(each) == count for each in distinct])
    return VariationFigures([share_row("variations", drawn.ranks), share_row(name, ranks)], distances, different)


def random_pictures(context: EvaluationContext, indices: Sequence[int], count: int) -> Tensor:
    """For each picture others of the same vendor, of both splits, or of any where there are no vendors.

    Returns:
        (len(indices), count) int64, indices of reference pictures; repeated only where there are fewer.
    """
    reference = context.reference
    random = np.random.default_rng(context.settings.seed)
    everything = torch.arange(len(reference.store))
    rows = []
    for index in indices:
        same = reference.vendor_ids == reference.vendor_ids[index] if reference.has_vendors else everything >= 0
        others = everything[same & (everything != index)].numpy()
        if not len(others):
            raise UserError("expected two pictures of each style at least, got one alone; add pictures to the data")
        rows.append(random.choice(others, count, replace=len(others) < count))
    return torch.from_numpy(np.stack(rows))


def measure_interpolations(
    context: EvaluationContext, scorers: Mapping[str, Scorer], strips: int, steps: int, decoder: str = "tokens"
) -> InterpolationFigures:
    """Draw strips between held-out pictures.

    Args:
        context: of a model that draws of image embeddings.
        scorers: by name, which measure.
        strips: how many; fewer where there are fewer than twice as many pictures.
        steps: pictures of each, both ends among them.
        decoder: as for `measure_variations`.

    Raises:
        UserError: the model takes no embeddings, there is one picture, or `steps` is out of range.
    """
    reference = context.reference
    indices = sample_indices(reference, context.settings, "validation", 2 * strips)
    ends = list(zip(indices[::2], indices[1::2], strict=False))
    if not ends:
        raise UserError("expected at least 2 held-out pictures to go from one to another, got 1; add pictures")
    cosines: dict[str, list[Tensor]] = {name: [] for name in scorers}
    for number, pair in enumerate(tqdm(ends, desc="interpolations", unit=" strips", delay=2, leave=False)):
        first, second = to_images(reference.pixels(pair))
        seed = candidate_seed(context.settings.seed, number)
        results = mix(context.dalle, first, second, steps=steps, seed=seed, decoder=decoder)
        strip = [result[0].image for result in results]
        for name, scorer in scorers.items():
            cosines[name].append(scorer.embed_images(strip) @ scorer.embed_images([first, second]).T)
    monotonic = {name: [is_monotonic(values) for values in strips] for name, strips in cosines.items()}
    both = [all(each) for each in zip(*monotonic.values(), strict=True)]
    return InterpolationFigures(
        len(ends),
        steps,
        {name: _share(hits) for name, hits in monotonic.items()},
        _share(both) if len(scorers) > 1 else None,
        {name: mean_interval([forward_share(values) for values in strips]) for name, strips in cosines.items()},
    )


def is_monotonic(cosines: Tensor) -> bool:
    """Whether a strip never goes back, and ends elsewhere than it begins.

    Args:
        cosines: (steps, 2) of each picture with the first and the second end.
    """
    steps = cosines.diff(dim=0)
    goes_back = (steps[:, 0] > 0).any() or (steps[:, 1] < 0).any()
    return not goes_back and bool(cosines[-1, 0] < cosines[0, 0]) and bool(cosines[-1, 1] > cosines[0, 1])


def forward_share(cosines: Tensor) -> float:
    """The share of a strip's steps at which the cosine with the second end gains on that with the first.

    Args:
        cosines: as for `is_monotonic`.
    """
    return float(((cosines[:, 1] - cosines[:, 0]).diff() > 0).double().mean())


def measure_edits(
    context: EvaluationContext, scorers: Mapping[str, Scorer], edits: int, theta: float, decoder: str = "tokens"
) -> EditFigures:
    """Change held-out pictures by the difference of their own names and those of other held-out pictures.

    Args:
        context: of a model that draws of image embeddings.
        scorers: by name, which measure besides the judges.
        edits: how many.
        theta: how far to go.
        decoder: as for `measure_variations`.

    Raises:
        UserError: the model takes no embeddings, there are fewer than three concepts, or `theta` is out of range.
    """
    reference, seed = context.reference, context.settings.seed
    indices = sample_indices(reference, context.settings, "validation", edits)
    judges = context.r_precisions if reference.has_vendors else {}
    scores: dict[str, list[Tensor]] = {name: [] for name in [*scorers, *judges]}
    for number, index in enumerate(tqdm(indices, desc="text differences", unit=" edits", delay=2, leave=False)):
        concepts = [*other_concepts(context, index, candidate_seed(seed, number)), index]
        target, other, source = (_name(context, each) for each in concepts)
        (image,) = to_images(reference.pixels([index]))
        images = edit(context.dalle, image, source, target, theta=theta, steps=2, decoder=decoder).images
        for name, scorer in scorers.items():
            scores[name].append(torch.stack([scorer.cosines(images, text) for text in (target, other, source)], 1))
        pixels = to_pixels(images, reference.size)
        for judge, measure in judges.items():
            # The picture itself is a drawing of the source: any change would lead away from it.
            fit = measure.fit(measure.features_of(pixels), reference.vendor_ids[index].expand(2))
            values = fit[:, reference.concept_ids[concepts]]
            scores[judge] += [values] if values.isfinite().all() else []  # other vendors may lack one of the concepts
    shares = {name: edit_shares(torch.stack(each)) for name, each in scores.items() if each}
    return EditFigures(len(indices), theta, shares)


def other_concepts(context: EvaluationContext, index: int, seed: int) -> tuple[int, int]:
    """Two held-out pictures of other concepts, with other names, than a picture's and than each other's.

    Raises:
        UserError: there are none.
    """
    reference = context.reference
    indices = reference.indices("validation", context.settings.kinds)
    found = [index]
    for place in np.random.default_rng(seed).permutation(len(indices)):
        other = indices[place]
        if all(
            reference.concept_ids[other] != reference.concept_ids[each]
            and _name(context, other) != _name(context, each)
            for each in found
        ):
            found.append(other)
        if len(found) == 3:
            return found[1], found[2]
    raise UserError("expected held-out pictures of at least 3 concepts for text differences, got fewer; add pictures")


def _name(context: EvaluationContext, index: int) -> str:
    """A picture's name without the word of its style."""
    return prompt_of(context.reference.store.entries[index], with_style=False) or ""


def edit_shares(scores: Tensor) -> EditShares:
    """How often edits do what they should.

    Args:
        scores: (edits, 2, 3): before and after, of the target, of a name in neither text, and of the source.
    """
    rises = scores[:, 1] > scores[:, 0]
    falls = scores[:, 1, 2] < scores[:, 0, 2]
    target, other = rises[:, 0], rises[:, 1]
    return EditShares(*(_share(hits.tolist()) for hits in (target & falls, target, falls, other)))


def measure_inversion(context: EvaluationContext, pictures: int) -> InversionFigures:
    """Find the numbers that draw held-out pictures, and draw them from these.

    The pictures are drawn of their embeddings where the model takes them, otherwise of their captions, with the
    guidance that the model recommends.

    Args:
        context: model and reference pictures.
        pictures: how many.
    """
    dalle, reference = context.dalle, context.reference
    indices = sample_indices(reference, context.settings, "validation", pictures)
    wrong = []
    for index in tqdm(indices, desc="inversion", unit=" pictures", delay=2, leave=False):
        (image,) = to_images(reference.pixels([index]))
        _, image_ids = encode_picture(dalle.image_tokenizer, dalle.stream.config.grid, image)
        prompt = _prompt_for(context, index, image)
        known = (dalle.transformer, dalle.stream, prompt)
        uniforms = invert(*known, image_ids, dalle.sampling.guidance)
        again = redraw(*known, uniforms, dalle.sampling.guidance)
        wrong.append(int((again != image_ids).sum()))
    return InversionFigures(len(wrong), wrong.count(0), _share([not count for count in wrong]), sum(wrong))


def _prompt_for(context: EvaluationContext, index: int, image: Image.Image) -> Prompt:
    dalle = context.dalle
    if dalle.stream.config.embed_positions:
        return Prompt(dalle.encode(""), (), tuple(embed(dalle, image).tolist()))
    caption = prompt_of(context.reference.store.entries[index]) or ""
    return Prompt(dalle.encode(caption))


def _share(hits: Sequence[bool]) -> Share:
    return mean_share([float(hit) for hit in hits])
