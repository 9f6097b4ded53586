"""Recognises the things in pictures of scenes: each part is the drawing that is nearest to it by a judge's features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.data.scenes.colours import COLOURS, recolour
from dalle_mini_impl.data.scenes.composer import SceneArt
from dalle_mini_impl.data.scenes.looks import turn, with_look
from dalle_mini_impl.data.scenes.plan import LOOKS
from dalle_mini_impl.evaluate.judges import BATCH_SIZE, Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.evaluate.scene_parts import ScenePart, cut_out, find_parts
from dalle_mini_impl.util.errors import UserError

LEAST_VENDORS = 3
"""Vendors that must have drawn a concept, so that it can be known by another's drawing."""
LEAST_CONCEPTS = 12
"""Fewest concepts of a vendor that scenes are made of: with fewer, hardly any combination is held out."""
VARIED_TASKS = ("turned", "look")
"""Tasks whose things are compared with turned drawings and other looks as well."""
UPSIDE_DOWN = "upside down"
"""The one of `data.scenes.plan.TURNS` that can be seen: vendors draw a thing from different sides."""


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
    turn: str = ""
    """`upside down`, or empty; only where turned drawings were looked for."""
    extent: float = 0.0
    """See `ScenePart.extent`."""
    look: str = ""
    """See `ScenePart.look`."""


@dataclass(frozen=True)
class FoundScene:
    """What a picture was found to show."""

    background: str
    parts: tuple[FoundPart, ...]


@dataclass(frozen=True, eq=False)
class KnownDrawings:
    """Drawings that parts of pictures are compared with."""

    measure: RPrecision
    concepts: tuple[str, ...]
    """By the ids of `measure`."""
    vendors: tuple[str, ...]
    """By the ids of `measure`."""
    turns: tuple[str, ...]
    """Of each drawing."""

    def nearest(self, pixels: Tensor) -> Iterator[tuple[str, str, str]]:
        """Concept, vendor and turn of the drawing that is nearest to each of some cut-out parts."""
        for index in self.measure.nearest(self.measure.features_of(pixels)).tolist():
            concept, vendor = int(self.measure.concept_ids[index]), int(self.measure.vendor_ids[index])
            yield self.concepts[concept], self.vendors[vendor], self.turns[index]


@dataclass(frozen=True, eq=False)
class SceneJudge:
    """Recognises drawings of some concepts, in any named colour, and if asked in any look or upside down."""

    art: SceneArt
    """Only the concepts that it knows apart."""
    plain: KnownDrawings
    """As they are, and in named colours."""
    varied: KnownDrawings
    """Those, and in other looks and upside down; for `VARIED_TASKS`."""

    def read(self, pictures: Sequence[np.ndarray], task: str) -> list[FoundScene]:
        """What pictures (H, W, 3) uint8 show that were drawn for scenes of a task."""
        known = self.varied if task in VARIED_TASKS else self.plain
        found = [find_parts(picture) for picture in pictures]
        cut_outs = [part.cut_out for scene in found for part in scene.parts]
        nearest = known.nearest(torch.stack(cut_outs)) if cut_outs else iter(())
        return [
            FoundScene(scene.background, tuple(_found(part, *next(nearest)) for part in scene.parts)) for scene in found
        ]


def _found(part: ScenePart, concept: str, vendor: str, turn: str) -> FoundPart:
    return FoundPart(concept, vendor, part.colour, part.centre, turn, part.extent, part.look)


def build_scene_judge(art: SceneArt, judge: Judge) -> SceneJudge:
    """Choose the concepts whose drawings a judge recognises by other vendors' drawings, and have it look at them.

    Args:
        art: drawings that scenes are made of.
        judge: gives the features.

    Raises:
        UserError: it knows too few of them apart.
    """
    drawings = [(concept, vendor, "") for vendor in sorted(art.rows) for concept in art.concepts(vendor)]
    known = _known(judge, *_drawn(art, judge, drawings))
    measure, concepts = known.measure, known.concepts
    unknown = measure.ranks(measure.reference_features, measure.concept_ids, measure.vendor_ids) > 0
    counts = torch.bincount(measure.concept_ids, minlength=len(concepts))
    failed = torch.bincount(measure.concept_ids[unknown], minlength=len(concepts)) > 0
    names = {concepts[index] for index in torch.nonzero((counts >= LEAST_VENDORS) & ~failed).flatten().tolist()}
    rows = {vendor: {name: row for name, row in of.items() if name in names} for vendor, of in art.rows.items()}
    art = replace(art, rows={vendor: of for vendor, of in rows.items() if len(of) >= LEAST_CONCEPTS})
    if not art.rows:
        raise UserError(
            f"expected at least {LEAST_CONCEPTS} things of one vendor whose drawings the judge knows by those of "
            f"others, got {len(names)} in all; build the emoji set with more vendors"
        )
    drawings = [
        (concept, vendor, change)
        for vendor in sorted(art.rows)
        for concept in art.concepts(vendor)
        for change in ("", *COLOURS, *LOOKS, UPSIDE_DOWN)
    ]
    features, kept = _drawn(art, judge, drawings)
    plain = [index for index, (_, _, change) in enumerate(kept) if change in ("", *COLOURS)]
    return SceneJudge(
        art, _known(judge, features[plain], [kept[index] for index in plain]), _known(judge, features, kept)
    )


def _drawn(
    art: SceneArt, judge: Judge, drawings: Sequence[tuple[str, str, str]]
) -> tuple[Tensor, list[tuple[str, str, str]]]:
    """Features of drawings (concept, vendor, change), without those that cannot be changed so; and which these are."""
    features, pixels, kept = [], [], []
    for concept, vendor, change in tqdm(drawings, desc="judge", unit=" drawings", delay=2, leave=False):
        changed = _changed(art.store.take(np.array([art.rows[vendor][concept]]))[0], change)
        if changed is not None:
            pixels.append(cut_out(changed))
            kept.append((concept, vendor, change))
        if len(pixels) == BATCH_SIZE:
            features.append(judge.features(torch.stack(pixels)))
            pixels = []
    if pixels:
        features.append(judge.features(torch.stack(pixels)))
    return torch.cat(features), kept


def _changed(rgba: np.ndarray, change: str) -> np.ndarray | None:
    """A drawing in a colour, a look or upside down; None where it cannot have the colour, or looks the same so."""
    if change in COLOURS:
        return recolour(rgba, change)
    image = Image.fromarray(rgba, "RGBA")
    if change in LOOKS:
        return np.asarray(with_look(image.crop(image.getbbox()), change, len(rgba)))
    turned = turn(image.crop(image.getbbox()), change) if change else image
    return None if turned is None else np.asarray(turned)


def _known(judge: Judge, features: Tensor, drawings: Sequence[tuple[str, str, str]]) -> KnownDrawings:
    """Drawings (concept, vendor, change) with their features."""
    concepts, vendors = (tuple(sorted({one[place] for one in drawings})) for place in (0, 1))
    concept_ids = torch.tensor([concepts.index(concept) for concept, _, _ in drawings])
    vendor_ids = torch.tensor([vendors.index(vendor) for _, vendor, _ in drawings])
    turns = tuple(change if change == UPSIDE_DOWN else "" for _, _, change in drawings)
    return KnownDrawings(build_r_precision(judge, features, concept_ids, vendor_ids), concepts, vendors, turns)
