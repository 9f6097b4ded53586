"""Scenes in the batches of a training: composed anew for each row of each step, and stored nowhere.

A scene follows from (seed, step, row of the global batch), so batches are the same at any number of processes and
workers, and in a resumed run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.config.scenes import LANGUAGES, TASKS, ScenesConfig
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.scenes.composer import Scene, SceneArt, compose_scene, draw_scene, scene_art, worded
from dalle_mini_impl.data.scenes.contrast import compose_contrast
from dalle_mini_impl.evaluate.data import store_config
from dalle_mini_impl.util.errors import UserError

LANGUAGE = 1
"""Last number of the seed of a caption's language, which keeps it apart from that of what the scene shows."""
UNCHANGED = (1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0)
"""The row of `random_changes` that changes nothing."""


@dataclass(frozen=True)
class SceneRows:
    """Which rows of each global batch are scenes, and what these show."""

    batch_size: int
    """Rows of the global batch."""
    count: int = 0
    """How many of them are scenes."""
    art: SceneArt | None = None
    """What scenes are composed of; None where there are none."""
    version: str = ""
    """Tells whether that art has still the same content."""
    size: int = 0
    """Side of the scenes in pixels."""
    seed: int = 0
    tasks: tuple[str, ...] = TASKS
    language_weights: Mapping[str, float] | None = None
    """Relative frequency of captions by language code; languages not named have 1."""

    @property
    def pictures(self) -> int:
        """How many rows are pictures of the training set."""
        return self.batch_size - self.count

    def split(self, rows: slice) -> tuple[list[int], dict[int, int]]:
        """Divide some rows of the global batch into scenes and pictures; scenes are spread evenly over the batch.

        Returns:
            The rows that are scenes; and the other rows, each with its number among the `pictures` of the batch.
        """
        every = range(*rows.indices(self.batch_size))
        scenes = [row for row in every if self._before(row + 1) > self._before(row)]
        return scenes, {row: row - self._before(row) for row in every if row not in scenes}

    def compose(self, step: int, row: int) -> Scene:
        """The scene in a row.

        Raises:
            UserError: the art has none of these tasks.
        """
        assert self.art is not None
        languages = [self.language(step, row)]
        try:
            return compose_scene(
                self.art, seed=self.seed, step=step, row=row, size=self.size, tasks=self.tasks, languages=languages
            )
        except ValueError as error:
            raise UserError(f"{error}; change scenes.tasks, or name a store of more pictures") from error

    def drawn_by_another(self, scene: Scene, random: np.random.Generator) -> Image.Image:
        """The scene as another vendor draws it, or the same picture if no other one can."""
        assert self.art is not None
        concepts = {one.concept for one in scene.plan.objects if not one.wearing}
        vendors = [
            name for name, rows in sorted(self.art.rows.items()) if name != scene.vendor and concepts <= set(rows)
        ]
        drawn = (draw_scene(self.art, str(name), scene.plan, self.size, random) for name in random.permutation(vendors))
        return next((image for image in drawn if image is not None), scene.image)

    def compose_pair(self, step: int, row: int) -> Scene:
        """As `compose`, but every second scene of a batch is the one before it with one thing changed.

        Raises:
            UserError: the art has none of these tasks, or a scene that cannot be changed.
        """
        number = self._before(row)
        scene = self.compose(step, number - number % 2)
        if number % 2 == 0:
            return scene
        assert self.art is not None
        languages = [self.language(step, number)]
        try:
            return compose_contrast(
                self.art, scene, seed=self.seed, step=step, row=number, size=self.size, languages=languages
            )
        except ValueError as error:
            raise UserError(f"{error}; change scenes.tasks, or name a store of more pictures") from error

    def caption(self, scene: Scene, step: int, row: int, number: int) -> str:
        """The scene's own caption, or a further wording of it, by number; most are in other languages."""
        if number == 0:
            return scene.caption
        assert self.art is not None
        language = self.language(step, row, number)
        random = np.random.default_rng([self.seed, step, row, number])
        return worded(self.art, scene.plan, scene.vendor, language, random)

    def language(self, *place: int) -> str:
        """The language of a caption, by the step, the row and, for further captions of a scene, their number."""
        weights = np.array([(self.language_weights or {}).get(language, 1.0) for language in LANGUAGES])
        random = np.random.default_rng([self.seed, *place, LANGUAGE])
        return str(random.choice(LANGUAGES, p=weights / weights.sum()))

    def _before(self, row: int) -> int:
        return row * self.count // self.batch_size


def open_scenes(
    config: ScenesConfig,
    run: RunConfig,
    picture_size: tuple[int, int],
    language_weights: Mapping[str, float] | None = None,
) -> SceneRows:
    """Open the art that scenes are composed of, if a config asks for them.

    Args:
        config: names it.
        run: settings of the run.
        picture_size: height and width of the model's pictures in pixels.
        language_weights: relative frequency of captions by language code; languages not named have 1.

    Returns:
        Which rows of each batch are scenes; none where `scenes.store` is empty.

    Raises:
        UserError: the store cannot be read or has no picture that scenes can be composed of; the pictures are not
            square; a task is unknown; no language of scenes has a weight; or `scenes.share` leaves a batch no pictures
            of one kind.
    """
    if not config.store:
        return SceneRows(run.batch_size)
    count = round(config.share * run.batch_size)
    if not 0 < count < run.batch_size:
        raise UserError(
            f"expected scenes.share of which a batch of {run.batch_size} has scenes and pictures, got "
            f"{config.share:g}; change it, or leave scenes.store out"
        )
    if not config.tasks or set(config.tasks) - set(TASKS):
        got = ", ".join(config.tasks) or "none"
        raise UserError(f"expected scenes.tasks of {', '.join(TASKS)}, got {got}; change it")
    if picture_size[0] != picture_size[1]:
        raise UserError(
            f"expected square pictures for scenes, got {picture_size[0]} × {picture_size[1]} pixels; "
            f"leave scenes.store out"
        )
    if language_weights and not any(language_weights.get(language, 1.0) for language in LANGUAGES):
        raise UserError(
            f"expected language_weights with one of scenes' languages, {', '.join(LANGUAGES)}, got none; add one, or "
            f"leave scenes.store out"
        )
    store = open_store(store_config(config.store), "train")
    return SceneRows(
        run.batch_size,
        count,
        scene_art(store, config.tasks, config.original_placement),
        store.version,
        picture_size[0],
        run.seed,
        config.tasks,
        language_weights,
    )


def with_scenes(
    rgba: np.ndarray, may_flip: np.ndarray, changes: Tensor, scenes: Sequence[Scene]
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Append scenes, which are not augmented, to stored pictures and what is to be done to these.

    Args:
        rgba: (B, S, S, 4) uint8.
        may_flip: (B,) bool, whether the mirror image is allowed.
        changes: (B, 7) from `random_changes`.
        scenes: n scenes of side S.

    Returns:
        The same of B + n pictures.
    """
    if not scenes:
        return rgba, may_flip, changes
    drawn = np.stack([np.asarray(scene.image.convert("RGBA")) for scene in scenes])
    none = torch.tensor(UNCHANGED).repeat(len(scenes), 1)
    return (
        np.concatenate([rgba, drawn]),
        np.concatenate([may_flip, np.zeros(len(scenes), bool)]),
        torch.cat([changes, none]),
    )
