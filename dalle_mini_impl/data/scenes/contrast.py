"""Scenes that differ from another in one thing, such as a colour, which a scorer must learn to tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.composer import MAX_TRIES, Scene, SceneArt, draw_scene, worded
from dalle_mini_impl.data.scenes.plan import (
    LOOK_BACKGROUNDS,
    LOOKS,
    MAX_COUNT,
    SIZES,
    TURNS,
    SceneObject,
    ScenePlan,
    split_of_plan,
)

OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
"""Relation of two objects -> the one after they have changed places."""


def compose_contrast(
    art: SceneArt, scene: Scene, *, seed: int, step: int, row: int, size: int, languages: Sequence[str]
) -> Scene:
    """Compose a scene that is another one but for one thing; the art is the same vendor's.

    Args:
        art: from `scene_art`.
        scene: the other scene.
        seed: of the run.
        step: the training step.
        row: position in the global batch.
        size: side of the picture in pixels.
        languages: of the caption, to choose from.

    Raises:
        ValueError: no change of the scene can be drawn.
    """
    random = np.random.default_rng([seed, step, row])
    for trial in range(MAX_TRIES):
        outfits = art.wardrobes[scene.vendor].outfits if scene.vendor in art.wardrobes else {}
        # Where the one other value is held out, or cannot be drawn, another object is left.
        other_object = trial >= MAX_TRIES // 10
        plan = changed_plan(scene.plan, art.concepts(scene.vendor), random, outfits, other_object=other_object)
        if split_of_plan(plan) == "train":
            image = draw_scene(art, scene.vendor, plan, size, random)
            if image is not None:
                break
    else:
        raise ValueError(f"expected drawings with which {scene.caption!r} can be changed, found none")
    language = str(random.choice(list(languages)))
    caption = worded(art, plan, scene.vendor, language, random)
    return Scene(image, plan, caption, language, scene.vendor)


def changed_plan(
    plan: ScenePlan,
    concepts: Sequence[str],
    random: np.random.Generator,
    outfits: Mapping[str, Sequence[str]] | None = None,
    *,
    other_object: bool = False,
) -> ScenePlan:
    """A plan with one thing changed: a colour, the number, the places, …; an object only where it has none of these.

    Args:
        plan: the plan to change.
        concepts: English names to choose another object from.
        random: the only source of randomness.
        outfits: concept -> concepts of what it can wear.
        other_object: whether to change an object in any case.

    Raises:
        ValueError: there is no other object.
    """
    changes: list[ScenePlan] = []
    used = {plan.background, *(one.colour for one in plan.objects)}
    other_colour = str(random.choice([name for name in COLOURS if name not in used]))
    for index, one in enumerate(plan.objects):
        if one.colour:
            changes.append(_with_object(plan, index, replace(one, colour=other_colour)))
        if one.count > 1:
            counts = [count for count in range(1, MAX_COUNT + 1) if count != one.count]
            changes.append(_with_object(plan, index, replace(one, count=int(random.choice(counts)))))
        if one.size:
            changes.append(_with_object(plan, index, replace(one, size=_other(SIZES, one.size, random))))
        if one.turn:
            changes.append(_with_object(plan, index, replace(one, turn=_other((*TURNS, ""), one.turn, random))))
        worn = [thing for thing in (outfits or {}).get(one.concept, ()) if thing != one.wearing]
        if one.wearing and worn:
            changes.append(_with_object(plan, index, replace(one, wearing=str(random.choice(worn)))))
    colours = [one.colour for one in plan.objects]
    if len(colours) == 2 and all(colours):
        swapped = zip(plan.objects, reversed(colours), strict=True)
        changes.append(replace(plan, objects=tuple(replace(one, colour=colour) for one, colour in swapped)))
    if plan.relation in OPPOSITES:
        changes.append(replace(plan, relation=OPPOSITES[plan.relation]))
    elif plan.relation:  # one object in front of the other
        changes.append(replace(plan, objects=plan.objects[::-1]))
    if plan.look:
        looks = [look for look in LOOKS if plan.background in ("", *LOOK_BACKGROUNDS[look])]
        changes.append(replace(plan, look=_other((*looks, ""), plan.look, random)))
    if plan.background and not plan.look:  # not every look goes with every background
        changes.append(replace(plan, background=other_colour))
    if other_object or not changes:
        shown = {one.concept for one in plan.objects}
        index = int(random.integers(len(plan.objects)))
        if thing := plan.objects[index].wearing:
            concepts = [head for head, things in (outfits or {}).items() if thing in things]
        others = [name for name in concepts if name not in shown]
        if not others:
            raise ValueError(f"expected another object than {', '.join(sorted(shown))}, found none")
        changes = [_with_object(plan, index, replace(plan.objects[index], concept=str(random.choice(others))))]
    return changes[random.integers(len(changes))]


def _other(names: Sequence[str], name: str, random: np.random.Generator) -> str:
    return str(random.choice([other for other in names if other != name]))


def _with_object(plan: ScenePlan, index: int, other: SceneObject) -> ScenePlan:
    return replace(plan, objects=(*plan.objects[:index], other, *plan.objects[index + 1 :]))
