"""Does a picture show the scene that its caption describes? After GenEval (Ghosh et al. 2023), on composed scenes.

Captions are those of `data/scenes`: one object, two, two in a place, several of a kind, an object in a colour, two in
a colour each. A picture is separated into parts (`scene_parts`), each part is matched to the nearest concept by a
judge's features, and the caption is right if its objects are there, in their number, colours and places. Beside what a
model draws stand the composed pictures themselves, which is as much as the measure can see, and captions of other
scenes, which is chance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.config.scenes import JUDGED_TASKS
from dalle_mini_impl.data.scenes.colours import COLOURS, recolour
from dalle_mini_impl.data.scenes.composer import Scene, SceneArt, compose_scene
from dalle_mini_impl.data.scenes.plan import SceneObject, Split
from dalle_mini_impl.evaluate.intervals import Share, mean_share
from dalle_mini_impl.evaluate.judges import BATCH_SIZE, Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.evaluate.scene_parts import cut_out, find_parts
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

LEAST_VENDORS = 3
"""Vendors that must have drawn a concept, so that it can be known by another's drawing."""
LEAST_CONCEPTS = 12
"""Fewest concepts of a vendor that scenes are made of: with fewer, hardly any combination is held out."""
SINGLE = "single"
"""The task without combinations, of which nothing is held out."""
BACKGROUND = "background"
"""Row on the backgrounds of all scenes."""
STYLE = "style"
"""Row on the scenes whose caption has a style word."""


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What to measure."""

    scenes: int = 20
    """For each task and split."""
    candidates: int = 16
    """N, pictures per caption."""
    tasks: tuple[str, ...] = JUDGED_TASKS
    """Of `config.scenes.JUDGED_TASKS`."""
    languages: tuple[str, ...] = ("en",)
    """Of the captions."""
    seed: int = 0
    """Determines scenes and candidates."""


@dataclass(frozen=True)
class FoundPart:
    """A part of a picture, recognised."""

    concept: str
    """The nearest one."""
    vendor: str
    """Whose drawing is the nearest."""
    colour: str
    """Named colour; empty for none."""
    centre: tuple[float, float]
    """x and y, as shares of the sides."""


@dataclass(frozen=True)
class FoundScene:
    """What a picture was found to show."""

    background: str
    parts: tuple[FoundPart, ...]


@dataclass(frozen=True, eq=False)
class SceneJudge:
    """Recognises drawings of some concepts, in any named colour."""

    art: SceneArt
    """Only the concepts that it knows apart."""
    measure: RPrecision
    concepts: tuple[str, ...]
    """By the ids of `measure`."""
    vendors: tuple[str, ...]

    def read(self, pictures: Sequence[np.ndarray]) -> list[FoundScene]:
        """What pictures (H, W, 3) uint8 show."""
        found = [find_parts(picture) for picture in pictures]
        cut_outs = [part.cut_out for scene in found for part in scene.parts]
        nearest = self._nearest(torch.stack(cut_outs)) if cut_outs else iter(())
        return [
            FoundScene(
                scene.background, tuple(FoundPart(*next(nearest), part.colour, part.centre) for part in scene.parts)
            )
            for scene in found
        ]

    def _nearest(self, pixels: Tensor) -> Iterator[tuple[str, str]]:
        for index in self.measure.nearest(self.measure.features_of(pixels)).tolist():
            yield (
                self.concepts[int(self.measure.concept_ids[index])],
                self.vendors[int(self.measure.vendor_ids[index])],
            )


@dataclass(frozen=True)
class SceneRow:
    """How often captions of one kind are shown rightly."""

    task: str
    """One of `config.scenes.JUDGED_TASKS`, `BACKGROUND` or `STYLE`."""
    split: Split
    """Whether its combinations are held out."""
    language: str
    count: int
    """Scenes."""
    best: Share
    """Of the pictures ranked first."""
    mean: Share
    """Of all candidates."""
    true: Share
    """Of the composed pictures themselves: the ceiling."""
    shuffled: Share
    """Of the pictures ranked first, with the caption of another scene of the task: chance."""


@dataclass(frozen=True, eq=False)
class DrawnScene:
    """A caption, with its composed picture and the model's."""

    scene: Scene
    pictures: list[Image.Image]
    """Best first."""
    true: FoundScene
    found: list[FoundScene]
    """Of `pictures`."""


def build_scene_judge(art: SceneArt, judge: Judge) -> SceneJudge:
    """Choose the concepts whose drawings a judge recognises by other vendors' drawings, and have it look at them.

    Args:
        art: drawings that scenes are made of.
        judge: gives the features.

    Raises:
        UserError: it knows too few of them apart.
    """
    drawings = [(concept, vendor, "") for vendor in sorted(art.rows) for concept in art.concepts(vendor)]
    measure, concepts, _ = _measure(art, judge, drawings)
    unknown = measure.ranks(measure.reference_features, measure.concept_ids, measure.vendor_ids) > 0
    counts = torch.bincount(measure.concept_ids, minlength=len(concepts))
    failed = torch.bincount(measure.concept_ids[unknown], minlength=len(concepts)) > 0
    known = {concepts[index] for index in torch.nonzero((counts >= LEAST_VENDORS) & ~failed).flatten().tolist()}
    rows = {vendor: {name: row for name, row in of.items() if name in known} for vendor, of in art.rows.items()}
    art = replace(art, rows={vendor: of for vendor, of in rows.items() if len(of) >= LEAST_CONCEPTS})
    if not art.rows:
        raise UserError(
            f"expected at least {LEAST_CONCEPTS} things of one vendor whose drawings the judge knows by those of "
            f"others, got {len(known)} in all; build the emoji set with more vendors"
        )
    drawings = [
        (concept, vendor, colour)
        for vendor in sorted(art.rows)
        for concept in art.concepts(vendor)
        for colour in ("", *COLOURS)
    ]
    return SceneJudge(art, *_measure(art, judge, drawings))


def _measure(
    art: SceneArt, judge: Judge, drawings: Sequence[tuple[str, str, str]]
) -> tuple[RPrecision, tuple[str, ...], tuple[str, ...]]:
    """Features of drawings (concept, vendor, colour), with the names of their concepts and vendors."""
    features, pixels, kept = [], [], []
    for concept, vendor, colour in tqdm(drawings, desc="judge", unit=" drawings", delay=2, leave=False):
        rgba = art.store.take(np.array([art.rows[vendor][concept]]))[0]
        coloured = recolour(rgba, colour) if colour else rgba
        if coloured is not None:
            pixels.append(cut_out(coloured))
            kept.append((concept, vendor))
        if len(pixels) == BATCH_SIZE:
            features.append(judge.features(torch.stack(pixels)))
            pixels = []
    if pixels:
        features.append(judge.features(torch.stack(pixels)))
    concepts, vendors = (tuple(sorted(set(names))) for names in zip(*kept, strict=True))
    concept_ids = torch.tensor([concepts.index(concept) for concept, _ in kept])
    vendor_ids = torch.tensor([vendors.index(vendor) for _, vendor in kept])
    return build_r_precision(judge, torch.cat(features), concept_ids, vendor_ids), concepts, vendors


def is_shown(scene: Scene, found: FoundScene) -> bool:
    """Whether a picture shows the objects of a scene, in their number, colours and places; backgrounds do not count."""
    plan = scene.plan
    if len(plan.objects) == 1:
        count = len(_matching(plan.objects[0], found))
        return count == plan.objects[0].count if plan.objects[0].count > 1 else count > 0
    first, second = (_matching(one, found) for one in plan.objects)
    pairs = [(a, b) for a in first for b in second if a != b]
    return any(not plan.relation or _stands(plan.relation, found.parts[a], found.parts[b]) for a, b in pairs)


def has_background(scene: Scene, found: FoundScene) -> bool:
    """Whether a picture has the background that the caption names, or white where it names none."""
    return found.background == (scene.plan.background or "white")


def has_style(scene: Scene, found: FoundScene) -> bool:
    """Whether a part resembles a drawing by the vendor whose style the caption names more than any other's."""
    return any(part.vendor == scene.vendor for part in found.parts)


def _matching(one: SceneObject, found: FoundScene) -> list[int]:
    return [
        index
        for index, part in enumerate(found.parts)
        if part.concept == one.concept and (not one.colour or part.colour == one.colour)
    ]


def _stands(relation: str, first: FoundPart, second: FoundPart) -> bool:
    """Whether the first part stands in a relation to the second, which is the larger one of both distances."""
    right, down = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if relation in ("left", "right"):
        return abs(right) > abs(down) and (right > 0) == (relation == "right")
    return abs(down) > abs(right) and (down > 0) == (relation == "below")


def scenes_of(art: SceneArt, settings: SceneSettings, task: str, split: Split, language: str) -> list[Scene]:
    """Composed scenes of one task, split and language, of those that can be judged: things in front of others cannot.

    Raises:
        ValueError: there are none.
    """
    compose = partial(
        compose_scene,
        art,
        seed=settings.seed,
        step=JUDGED_TASKS.index(task),
        size=art.store.pixels.shape[1],
        tasks=(task,),
        languages=(language,),
        split=split,
    )
    scenes = (compose(row=row) for row in count())
    return list(islice((scene for scene in scenes if scene.plan.relation != "front"), settings.scenes))


def draw_scenes(dalle: DalleMini, judge: SceneJudge, scenes: Sequence[Scene], candidates: int) -> list[DrawnScene]:
    """Draw the captions of scenes, and read the pictures."""
    drawn = []
    size = dalle.image_tokenizer.config.size[::-1]
    for number, scene in enumerate(tqdm(scenes, desc=scenes[0].plan.task, unit=" scenes", delay=2, leave=False)):
        result = dalle.generate(scene.caption, candidates, candidates, seed=number, transparent=False)
        pictures = [candidate.image for candidate in result]
        true = scene.image.resize(size, Image.Resampling.LANCZOS)
        first, *found = judge.read([np.asarray(picture.convert("RGB")) for picture in (true, *pictures)])
        drawn.append(DrawnScene(scene, pictures, first, found))
    return drawn


def scene_rows(
    dalle: DalleMini, judge: SceneJudge, settings: SceneSettings
) -> Iterator[tuple[list[SceneRow], list[DrawnScene]]]:
    """Measure a model: for each language and split the rows of each task, then those on backgrounds and styles.

    Yields:
        Rows as soon as they are measured, with the scenes they are about; each scene once.

    Raises:
        UserError: there are no scenes of a task.
    """
    for language in settings.languages:
        for split in ("train", "held_out"):
            everything: list[DrawnScene] = []
            for task in settings.tasks:
                if (task, split) == (SINGLE, "held_out"):
                    continue
                try:
                    scenes = scenes_of(judge.art, settings, task, split, language)
                except ValueError as error:
                    raise UserError(f"{error}; choose other tasks, or build the emoji set with more vendors") from error
                drawn = draw_scenes(dalle, judge, scenes, settings.candidates)
                everything += drawn
                yield [_row(task, split, language, drawn, is_shown)], drawn
            styled = [one for one in everything if names_style(judge.art, one.scene)]
            groups = ((BACKGROUND, everything, has_background), (STYLE, styled, has_style))
            yield [_row(name, split, language, drawn, is_right) for name, drawn, is_right in groups if drawn], []


def names_style(art: SceneArt, scene: Scene) -> bool:
    """Whether a scene's caption ends with the style word of its vendor."""
    return scene.vendor in art.styles and scene.caption.endswith(f", {art.styles[scene.vendor]}")


def _row(
    task: str,
    split: Split,
    language: str,
    drawn: Sequence[DrawnScene],
    is_right: Callable[[Scene, FoundScene], bool],
) -> SceneRow:
    others = [one.scene for one in (*drawn[1:], drawn[0])]
    return SceneRow(
        task,
        split,
        language,
        len(drawn),
        best=mean_share([is_right(one.scene, one.found[0]) for one in drawn]),
        mean=mean_share([float(np.mean([is_right(one.scene, found) for found in one.found])) for one in drawn]),
        true=mean_share([is_right(one.scene, one.true) for one in drawn]),
        shuffled=mean_share([is_right(other, one.found[0]) for other, one in zip(others, drawn, strict=True)]),
    )
