"""Does a picture show the scene that its caption describes? After GenEval (Ghosh et al. 2023), on composed scenes.

Captions are those of `data/scenes`: one object, two, two in a place, several of a kind, an object in a colour, two in
a colour each; and beyond GenEval one that is big or small, upside down, or in another look. Three kinds cannot be
judged in this way and are left out: a thing that wears another one and a thing in front of another one are one part,
and mirrored has no meaning where vendors draw a thing from different sides.

A picture is separated into parts (`scene_parts`), each part is matched to the nearest concept by a judge's features
(`scene_judge`), and the caption is right if its objects are there, in their number, colours, places, sizes and looks.
Beside what a model draws stand the composed pictures themselves, which is as much as the measure can see, and captions
of other scenes, which is chance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.config.scenes import JUDGED_TASKS
from dalle_mini_impl.data.scenes.composer import Scene, SceneArt, compose_scene
from dalle_mini_impl.data.scenes.plan import SceneObject, ScenePlan, Split
from dalle_mini_impl.evaluate.intervals import Share, mean_share
from dalle_mini_impl.evaluate.scene_judge import UPSIDE_DOWN, FoundPart, FoundScene, SceneJudge
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

SINGLE = "single"
"""The task without combinations, of which nothing is held out."""
BACKGROUND = "background"
"""Row on the backgrounds of all scenes."""
STYLE = "style"
"""Row on the scenes whose caption has a style word; in another look than the vendor's there is no style to see."""
EXTENTS = {"big": (0.7, 1.0), "small": (0.0, 0.45)}
"""Size -> least and largest extent of a part that has it."""


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


def is_shown(scene: Scene, found: FoundScene) -> bool:
    """Whether a picture shows the objects of a scene, in number, colour, place, size and look, on any background."""
    plan = scene.plan
    if len(plan.objects) == 1:
        count = len(_matching(plan.objects[0], found, plan.look))
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


def _matching(one: SceneObject, found: FoundScene, look: str = "") -> list[int]:
    """Numbers of the parts that show an object."""
    return [
        index
        for index, part in enumerate(found.parts)
        if part.concept == one.concept
        and one.colour in ("", part.colour)
        and one.turn in ("", part.turn)
        and look in ("", part.look)
        and (not one.size or EXTENTS[one.size][0] <= part.extent <= EXTENTS[one.size][1])
    ]


def _stands(relation: str, first: FoundPart, second: FoundPart) -> bool:
    """Whether the first part stands in a relation to the second, which is the larger one of both distances."""
    right, down = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if relation in ("left", "right"):
        return abs(right) > abs(down) and (right > 0) == (relation == "right")
    return abs(down) > abs(right) and (down > 0) == (relation == "below")


def scenes_of(art: SceneArt, settings: SceneSettings, task: str, split: Split, language: str) -> list[Scene]:
    """Composed scenes of one task, split and language, of those that can be judged (see the module).

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
    return list(islice((scene for scene in scenes if can_be_judged(scene.plan)), settings.scenes))


def can_be_judged(plan: ScenePlan) -> bool:
    """Whether parts of a picture tell whether it shows a plan."""
    return plan.relation != "front" and all(one.turn in ("", UPSIDE_DOWN) for one in plan.objects)


def draw_scenes(dalle: DalleMini, judge: SceneJudge, scenes: Sequence[Scene], candidates: int) -> list[DrawnScene]:
    """Draw the captions of scenes, and read the pictures."""
    drawn = []
    size = dalle.image_tokenizer.config.size[::-1]
    for number, scene in enumerate(tqdm(scenes, desc=scenes[0].plan.task, unit=" scenes", delay=2, leave=False)):
        result = dalle.generate(scene.caption, candidates, candidates, seed=number, transparent=False)
        pictures = [candidate.image for candidate in result]
        true = scene.image.resize(size, Image.Resampling.LANCZOS)
        first, *found = judge.read(
            [np.asarray(picture.convert("RGB")) for picture in (true, *pictures)], scene.plan.task
        )
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
            styled = [one for one in everything if names_style(judge.art, one.scene) and not one.scene.plan.look]
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
