"""DALL-E 1 against DALL-E 2: held-out captions, drawn with image embeddings of several sources and without."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from dalle_mini_impl.evaluate.frechet import frechet_distance, new_frechet
from dalle_mini_impl.evaluate.generation import (
    BATCH_SIZE,
    EvaluationContext,
    GeneratedPictures,
    generate_pictures,
    generated_rows,
    sample_indices,
)
from dalle_mini_impl.evaluate.intervals import Mean, ShareRow, format_mean, format_share, mean_interval
from dalle_mini_impl.evaluate.metrics import mean_distances
from dalle_mini_impl.evaluate.reference_pictures import ReferencePictures
from dalle_mini_impl.evaluate.styles import StyleFigures, style_figures
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.unclip.prior import Prior
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images, to_pixels
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.tables import aligned_table

EXAMPLES = 12
"""Captions of which pictures are shown on the sheet."""


@dataclass(frozen=True)
class System:
    """A way to draw pictures for captions."""

    name: str
    arguments: Mapping[str, Any]
    """Of `DalleMini.generate`."""
    is_told: bool = False
    """Whether it gets the image embedding of the held-out picture itself: as much as a prior could draw."""


SYSTEMS = (
    System("caption alone", {"prior": "none", "decoder": "tokens"}),
    System("text embedding", {"prior": "text", "decoder": "tokens"}),
    System("diffusion prior", {"prior": "diffusion", "decoder": "tokens"}),
    System("AR prior", {"prior": "ar", "decoder": "tokens"}),
    System("true embedding", {"prior": "none", "decoder": "tokens"}, is_told=True),
    System("diffusion decoder", {"prior": "diffusion", "decoder": "diffusion"}),
    System("diffusion decoder, true embedding", {"prior": "none", "decoder": "diffusion"}, is_told=True),
)
"""The first is DALL-E 1, then come the transformer with each kind of embedding, and the diffusion decoder with those of
the diffusion prior and of the real pictures."""


@dataclass(frozen=True)
class SystemFigures:
    """What one system's pictures measure."""

    name: str
    rows: list[ShareRow]
    """R-precision: mean of the candidates, then the best-ranked one where there is a scorer."""
    style: StyleFigures | None
    """Of the best-ranked pictures; None in a set without vendors."""
    frechet: float
    """Fréchet distance between the kept pictures and the real ones, on the first judge's features."""
    diversity: dict[str, Mean]
    """Judge -> mean of 1 - cosine between the kept pictures of one caption; empty where one is kept."""
    seconds: Mean
    """For the candidates of one caption, from text to ranked pictures."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """All systems on the same captions."""

    systems: list[SystemFigures]
    left_out: dict[str, str]
    """Name of each system that the checkpoint has no part for -> the reason."""
    prompts: list[str] = field(default_factory=list)
    """Of the examples."""
    examples: dict[str, list[Image.Image]] = field(default_factory=dict)
    """`real picture`, then each system -> its best picture of each."""


def compare_systems(context: EvaluationContext, keep: int, others: Sequence[DalleMini] = ()) -> Comparison:
    """Draw the held-out captions with every system, from the same seeds, and measure the pictures.

    Args:
        context: model, reference pictures and judges.
        keep: best pictures of each caption that distances are measured of.
        others: the same model with priors of other checkpoints; see `with_prior_of`.

    Raises:
        UserError: there are fewer than two held-out pictures, they need too much memory, or the `eval` extra is not
            installed.
    """
    reference, settings = context.reference, context.settings
    indices = sample_indices(reference, settings, "validation", settings.pairs)
    if len(indices) < 2:
        raise UserError("expected 2 or more held-out captions for the Fréchet distance, got 1; take more --pairs")
    count = len(indices) * settings.candidates
    height, width = reference.size
    check_memory(3 * height * width * count, f"{count} pictures", "take fewer --pairs or --candidates")
    judge = next(iter(context.r_precisions.values())).judge
    real = torch.cat(
        [judge.features(reference.pixels(part.tolist())) for part in torch.tensor(indices).split(BATCH_SIZE)]
    )
    new_frechet(real.shape[1])  # a missing extra is told before anything is drawn
    told = embedding_of_picture(reference)
    comparison = Comparison([], {})
    for system in SYSTEMS:
        dalle = _model_for(system, [context.dalle, *others], comparison.left_out)
        if dalle is None:
            continue
        pictures = generate_pictures(
            replace(context, dalle=dalle),
            indices,
            system.name,
            of_picture=told if system.is_told else lambda index: {},
            **system.arguments,
        )
        comparison.systems.append(measure_system(context, system.name, pictures, keep, real))
        shown = pictures.results[:EXAMPLES]
        if not comparison.examples:
            comparison.prompts.extend(result.prompt for result in shown)
            comparison.examples["real picture"] = to_images(reference.pixels(pictures.indices[:EXAMPLES]))
        comparison.examples[system.name] = [result[0].image for result in shown]
    return comparison


def measure_system(
    context: EvaluationContext, name: str, pictures: GeneratedPictures, keep: int, real: torch.Tensor
) -> SystemFigures:
    """Measure the pictures of one system.

    Args:
        context: judges and reference pictures.
        name: of the system.
        pictures: of held-out captions.
        keep: see `compare_systems`.
        real: (n, D) features of the held-out pictures by the first judge, as it returns them.
    """
    judge = next(iter(context.r_precisions.values())).judge
    kept = [[candidate.image for candidate in result[:keep]] for result in pictures.results]
    features = torch.cat([judge.features(to_pixels(images, context.reference.size)) for images in kept])
    diversity = {}
    if len(kept[0]) > 1:
        distances = {judge: mean_distances(values[:, :keep]) for judge, values in pictures.features.items()}
        diversity = {judge: mean_interval(values.tolist()) for judge, values in distances.items()}
    return SystemFigures(
        name,
        generated_rows(name, pictures),
        style_figures(context, pictures) if context.reference.has_vendors else None,
        frechet_distance(features, real),
        diversity,
        mean_interval(pictures.seconds),
    )


def embedding_of_picture(reference: ReferencePictures, **arguments: Any) -> Callable[[int], Mapping[str, Any]]:
    """Arguments of `DalleMini.generate` for each picture: the picture whose embedding is drawn, and `arguments`."""
    return lambda index: {"image_embed": to_images(reference.pixels([index]))[0], **arguments}


def with_prior_of(dalle: DalleMini, name: str) -> DalleMini:
    """The same model with the prior of another checkpoint.

    Args:
        dalle: whose scorer the prior was trained with.
        name: shipped name, checkpoint folder or `hf:USER/REPO`.

    Raises:
        UserError: there is no scorer or prior, the prior was trained with another scorer or text tokenizer, or it is of
            the same kind as the model's own.
    """
    if dalle.own_scorer is None:
        raise UserError(f"expected a model with a scorer for the prior of {name}, got one without; train a scorer")
    other = copy.copy(dalle)
    prior = other.prior = Prior.from_pretrained(name, dalle.own_scorer, str(dalle.transformer.device))
    if dalle.prior is not None and dalle.prior.kind == prior.kind:
        raise UserError(
            f"expected a prior of another kind than the model's own, got {prior.kind} in {name}; leave it out"
        )
    return other


def comparison_table(systems: Sequence[SystemFigures]) -> str:
    """Style, distances and seconds of each system, a line each."""
    lines = []
    for figures in systems:
        styles = figures.style.drawn if figures.style else {}
        cells = {"": figures.name, "Fréchet distance": f"{figures.frechet:.1f}"}
        cells |= {f"style, {judge}": format_share(share) for judge, share in styles.items()}
        cells |= {f"diversity, {judge}": format_mean(mean) for judge, mean in figures.diversity.items()}
        lines.append({**cells, "seconds": format_mean(figures.seconds)})
    return aligned_table([list(lines[0]), *(list(line.values()) for line in lines)])


def _model_for(system: System, dalles: Sequence[DalleMini], left_out: dict[str, str]) -> DalleMini | None:
    """The first model that can draw so, or None; why the first cannot is added to `left_out`."""
    told = {"image_embed": Image.new("RGB", (8, 8))} if system.is_told else {}
    reasons = []
    for dalle in dalles:
        try:
            _ = dalle.request("a", candidates=1, **system.arguments, **told).ids  # which also draws its embedding
        except UserError as error:
            reasons.append(str(error))
        else:
            return dalle
    left_out[system.name] = reasons[0]
    return None
