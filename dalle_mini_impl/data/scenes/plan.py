"""What a scene shows: drawn at random from a list of concepts, with a fixed part of all combinations held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dalle_mini_impl.data.emoji.captions import stable_hash
from dalle_mini_impl.data.scenes.colours import COLOURS

RELATIONS = ("left", "right", "above", "below", "front")
"""Where the first of two objects is, seen from the second; in front, it covers a part of it."""
SIZES = ("big", "small")
"""An object that nearly fills the picture, and one that leaves most of it empty."""
TURNS = ("upside down", "mirrored")
"""How an object is turned over."""
LOOKS = ("black and white", "outline", "pixel art")
"""Manners of drawing."""
LOOK_BACKGROUNDS = {"black and white": ("black", "white"), "outline": ("white",), "pixel art": tuple(COLOURS)}
"""Look -> backgrounds with a name that go with it."""
MAX_COUNT = 4
"""Most things of one kind."""
HELD_OUT_PER_MILLE = 150
"""Thousandths of the combinations that never occur in training."""
BACKGROUND_SHARE = 0.5
"""Share of scenes whose background has a named colour; the others are white, unsaid."""
MAX_TRIES = 1000
"""Most plans that are drawn until one is of the split that is asked."""
Split = Literal["train", "held_out"]
"""Which combinations a scene is made of."""


@dataclass(frozen=True)
class SceneObject:
    """One kind of thing in a scene."""

    concept: str
    colour: str = ""
    """A name in `COLOURS`; empty for the colours that it has."""
    count: int = 1
    size: str = ""
    """One of `SIZES`; empty for any."""
    turn: str = ""
    """One of `TURNS`; empty for upright."""
    wearing: str = ""
    """Concept of what it wears, one of `wearing.WORN`; empty for nothing."""


@dataclass(frozen=True)
class ScenePlan:
    """What a scene shows."""

    task: str
    """One of `config.scenes.TASKS`."""
    objects: tuple[SceneObject, ...]
    relation: str = ""
    """One of `RELATIONS`; empty where the caption says no place."""
    background: str = ""
    """A name in `COLOURS`; empty for white that is not named."""
    look: str = ""
    """One of `LOOKS`; empty for the art as it is."""

    @property
    def name(self) -> str:
        """Equal for plans that show the same; of a single thing as it is, on white, its concept."""
        objects, relation = self.objects, self.relation
        if not relation:
            objects = tuple(sorted(objects, key=repr))
        elif relation in ("right", "below"):
            objects, relation = objects[::-1], "left" if relation == "right" else "above"
        background = "" if self.background == "white" else self.background
        shown = replace(self, task="", objects=objects, relation=relation, background=background)
        concept = objects[0].concept
        return concept if shown == ScenePlan("", (SceneObject(concept),)) else repr(shown)


def is_held_out(*parts: str) -> bool:
    """Whether a combination, such as ("colour", "blue", "cat"), is one of those that never occur in training."""
    return stable_hash("scene", *parts) % 1000 < HELD_OUT_PER_MILLE


def combinations(plan: ScenePlan) -> list[tuple[str, ...]]:
    """What may be held out of a scene: two concepts in any order, and a concept with each of its properties."""
    found: list[tuple[str, ...]] = [("colour", one.colour, one.concept) for one in plan.objects if one.colour]
    found += [("count", str(one.count), one.concept) for one in plan.objects if one.count > 1]
    for one in plan.objects:
        properties = {"size": one.size, "turn": one.turn, "wearing": one.wearing, "look": plan.look}
        found += [(name, value, one.concept) for name, value in properties.items() if value]
    if len(plan.objects) == 2:
        found.append(("concepts", *sorted(one.concept for one in plan.objects)))
    return found


def split_of_plan(plan: ScenePlan) -> Split:
    """`held_out` if any of a scene's combinations is held out, so that training sees none of them, else `train`."""
    return "held_out" if any(is_held_out(*parts) for parts in combinations(plan)) else "train"


def draw_plan(
    random: np.random.Generator,
    concepts: Sequence[str],
    task: str,
    split: Split,
    outfits: Mapping[str, Sequence[str]] | None = None,
) -> ScenePlan:
    """Draw a scene of a task and split.

    Args:
        random: the only source of randomness.
        concepts: English names to choose from, at least two.
        task: one of `config.scenes.TASKS`; a single object has no combination, so all of `single` belongs to `train`.
        split: which combinations to use.
        outfits: concept -> concepts of what it can wear, to choose from for the task `wearing`, which needs some.

    Raises:
        ValueError: there is none of this task in this split.
    """
    for _ in range(MAX_TRIES):
        plan = _wearing_plan(random, outfits or {}) if task == "wearing" else _any_plan(random, concepts, task)
        if plan is not None and split_of_plan(plan) == split:
            return plan
    raise ValueError(f"expected a task with {split} combinations of {len(concepts)} concepts, got {task!r}")


def _wearing_plan(random: np.random.Generator, outfits: Mapping[str, Sequence[str]]) -> ScenePlan | None:
    if not outfits:
        return None
    head = str(random.choice(list(outfits)))
    thing = str(random.choice(outfits[head]))
    return ScenePlan("wearing", (SceneObject(head, wearing=thing),), background=_background(random, list(COLOURS)))


def _any_plan(random: np.random.Generator, concepts: Sequence[str], task: str) -> ScenePlan:
    pair = task in ("two", "position", "two_colours")
    chosen = [concepts[index] for index in random.choice(len(concepts), 1 + pair, replace=False)]
    colours = ["", ""]
    if task in ("colour", "two_colours"):
        colours = [str(name) for name in random.choice(list(COLOURS), 2, replace=False)]
    count = int(random.integers(2, MAX_COUNT + 1)) if task == "counting" else 1
    size = str(random.choice(SIZES)) if task == "size" else ""
    turn = str(random.choice(TURNS)) if task == "turned" else ""
    objects = tuple(SceneObject(name, colour, count, size, turn) for name, colour in zip(chosen, colours, strict=False))
    relation = str(random.choice(RELATIONS)) if task == "position" else ""
    look = str(random.choice(LOOKS)) if task == "look" else ""
    free = [name for name in COLOURS if name not in colours and (not look or name in LOOK_BACKGROUNDS[look])]
    return ScenePlan(task, objects, relation, _background(random, free), look)


def _background(random: np.random.Generator, free: Sequence[str]) -> str:
    return str(random.choice(free)) if random.random() < BACKGROUND_SHARE else ""
