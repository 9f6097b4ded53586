"""What a scene shows: drawn at random from a list of concepts, with a fixed part of all combinations held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dalle_mini_impl.data.emoji.captions import stable_hash
from dalle_mini_impl.data.scenes.colours import COLOURS

RELATIONS = ("left", "right", "above", "below")
"""Where the first of two objects is, seen from the second."""
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


def is_held_out(*parts: str) -> bool:
    """Whether a combination, such as ("colour", "blue", "cat"), is one of those that never occur in training."""
    return stable_hash("scene", *parts) % 1000 < HELD_OUT_PER_MILLE


def combinations(plan: ScenePlan) -> list[tuple[str, ...]]:
    """What may be held out of a scene: colour and concept, count and concept, two concepts in any order."""
    found: list[tuple[str, ...]] = [("colour", one.colour, one.concept) for one in plan.objects if one.colour]
    found += [("count", str(one.count), one.concept) for one in plan.objects if one.count > 1]
    if len(plan.objects) == 2:
        found.append(("concepts", *sorted(one.concept for one in plan.objects)))
    return found


def split_of_plan(plan: ScenePlan) -> Split:
    """`held_out` if any of a scene's combinations is held out, so that training sees none of them, else `train`."""
    return "held_out" if any(is_held_out(*parts) for parts in combinations(plan)) else "train"


def draw_plan(random: np.random.Generator, concepts: Sequence[str], task: str, split: Split) -> ScenePlan:
    """Draw a scene of a task and split.

    Args:
        random: the only source of randomness.
        concepts: English names to choose from, at least two.
        task: one of `config.scenes.TASKS`; a single object has no combination, so all of `single` belongs to `train`.
        split: which combinations to use.

    Raises:
        ValueError: there is none of this task in this split.
    """
    for _ in range(MAX_TRIES):
        plan = _any_plan(random, concepts, task)
        if split_of_plan(plan) == split:
            return plan
    raise ValueError(f"expected a task with {split} combinations of {len(concepts)} concepts, got {task!r}")


def _any_plan(random: np.random.Generator, concepts: Sequence[str], task: str) -> ScenePlan:
    pair = task in ("two", "position", "two_colours")
    chosen = [concepts[index] for index in random.choice(len(concepts), 1 + pair, replace=False)]
    colours = ["", ""]
    if task in ("colour", "two_colours"):
        colours = [str(name) for name in random.choice(list(COLOURS), 2, replace=False)]
    count = int(random.integers(2, MAX_COUNT + 1)) if task == "counting" else 1
    objects = tuple(SceneObject(name, colour, count) for name, colour in zip(chosen, colours, strict=False))
    relation = str(random.choice(RELATIONS)) if task == "position" else ""
    free = [name for name in COLOURS if name not in colours]
    background = str(random.choice(free)) if random.random() < BACKGROUND_SHARE else ""
    return ScenePlan(task, objects, relation, background)
