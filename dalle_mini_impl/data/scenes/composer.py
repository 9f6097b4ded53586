"""Composes captioned scenes from pictures with transparency; each follows from (seed, step, row) alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dalle_mini_impl.config.scenes import LANGUAGES, TASKS
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.scenes.captions import scene_caption
from dalle_mini_impl.data.scenes.colours import COLOURS, OPAQUE, recolour
from dalle_mini_impl.data.scenes.plan import ScenePlan, Split, draw_plan

GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")
"""Unicode groups of what can stand in a scene."""
NOT_IN_NAMES = ("and", "o’clock", "thirty", "locked", "unlocked", "volume")
"""Words in names of two things, of times, and of what is no thing."""
MAX_COVER = 0.8
"""Largest share of its frame that a drawing may cover; those above are pictures of scenes or signs."""
STYLE_SHARE = 0.5
"""Share of captions with the vendor's style word."""
MAX_TRIES = 200
"""Most scenes that are drawn until one works."""


@dataclass(frozen=True)
class SceneArt:
    """Pictures that scenes are made of."""

    store: PictureStore
    rows: dict[str, dict[str, int]]
    """Vendor -> English concept -> index in the store."""
    names: dict[str, dict[str, str]]
    """Language -> English concept -> its name."""
    styles: dict[str, str] = field(default_factory=dict)
    """Vendor -> style word."""

    def concepts(self, vendor: str) -> list[str]:
        """Concepts of a vendor that have a name in every language, in order."""
        return [name for name in sorted(self.rows[vendor]) if all(name in table for table in self.names.values())]


@dataclass(frozen=True)
class Scene:
    """A composed scene."""

    image: Image.Image
    """RGB."""
    plan: ScenePlan
    caption: str
    language: str
    vendor: str


def scene_art(store: PictureStore) -> SceneArt:
    """Choose the pictures of a store of the emoji set that can stand in scenes.

    Left out are groups other than `GROUPS`, names that no caption can be made of (see `is_plain_name`), and drawings
    that fill their frame.
    """
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    names: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    styles: dict[str, str] = {}
    for index, entry in enumerate(store.entries):
        details = entry.details
        if (
            details.get("kind") != "plain"
            or details.get("group") not in GROUPS
            or not is_plain_name(details["concept"])
        ):
            continue
        if (store.take(np.array([index]))[0, ..., 3] >= OPAQUE).mean() > MAX_COVER:
            continue
        rows[details["vendor"]][details["concept"]] = index
        for language in LANGUAGES:
            texts = [caption.text for caption in entry.captions if caption.language == language]
            if len(texts) > 1:  # the name, then the name with the style word
                names[language][details["concept"]] = texts[0]
                styles.setdefault(details["vendor"], texts[1].removeprefix(f"{texts[0]}, "))
    return SceneArt(store, dict(rows), names, styles)


def is_plain_name(name: str) -> bool:
    """Whether an English name can have an article, a plural and a colour: one thing, in the singular, of no colour."""
    words = set(name.lower().replace("-", " ").split())
    singular = not name.endswith("s") or name.endswith("ss")
    return singular and ":" not in name and not words & {*COLOURS, *NOT_IN_NAMES}


def compose_scene(
    art: SceneArt,
    *,
    seed: int,
    step: int,
    row: int,
    size: int,
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    split: Split = "train",
) -> Scene:
    """Compose the scene of one row of a training step, or of a benchmark.

    Args:
        art: from `scene_art`.
        seed: of the run.
        step: the training step.
        row: position in the global batch.
        size: side of the picture in pixels.
        tasks: to choose from.
        languages: to choose from.
        split: whether combinations that are held out are left out, or are all there is.

    Raises:
        ValueError: `split` has no scene of these tasks, or no drawing can have the colours that are asked.
    """
    random = np.random.default_rng([seed, step, row])
    for _ in range(MAX_TRIES):
        vendor = str(random.choice(sorted(art.rows)))
        plan = draw_plan(random, art.concepts(vendor), str(random.choice(list(tasks))), split)
        image = draw_scene(art, vendor, plan, size, random)
        if image is not None:
            break
    else:
        raise ValueError(f"expected drawings that {', '.join(tasks)} can be made of, found none")
    language = str(random.choice(list(languages)))
    style = art.styles.get(vendor, "") if random.random() < STYLE_SHARE else ""
    caption = scene_caption(plan, art.names[language], language, random, style)
    return Scene(image, plan, caption, language, vendor)


def draw_scene(
    art: SceneArt, vendor: str, plan: ScenePlan, size: int, random: np.random.Generator
) -> Image.Image | None:
    """Draw a plan as an RGB picture; None where a drawing cannot have its colour, or vanishes on the background."""
    background = np.array(COLOURS[plan.background]) if plan.background else np.full(3, 255)
    sprites = []
    for one in plan.objects:
        pixels = art.store.take(np.array([art.rows[vendor][one.concept]]))[0]
        coloured = recolour(pixels, one.colour) if one.colour else pixels
        if coloured is None or not _is_visible(coloured, background):
            return None
        sprites += [_cropped(coloured)] * one.count
    image = Image.new("RGBA", (size, size), tuple(int(value) for value in background))
    for sprite, box in zip(sprites, _boxes(plan, size, random), strict=True):
        left, top, side = box
        part = sprite.copy()
        scale = side / max(part.size)
        part = part.resize([max(1, round(length * scale)) for length in part.size], Image.Resampling.LANCZOS)
        image.alpha_composite(part, (left + (side - part.width) // 2, top + (side - part.height) // 2))
    return image.convert("RGB")


def _boxes(plan: ScenePlan, size: int, random: np.random.Generator) -> list[tuple[int, int, int]]:
    """Left, top and side of a square for each thing, in order; no two overlap."""
    count = sum(one.count for one in plan.objects)
    if count == 1:
        cells = [(0.0, 0.0, 1.0)]
    elif count == 2:
        relation = plan.relation or str(random.choice(["left", "right", "above", "below"]))
        near, far = (0.0, 0.25, 0.5), (0.5, 0.25, 0.5)
        cells = [near, far] if relation in ("left", "above") else [far, near]
        if relation in ("above", "below"):
            cells = [(top, left, side) for left, top, side in cells]
    else:
        quarters = [(left, top, 0.5) for top in (0.0, 0.5) for left in (0.0, 0.5)]
        cells = [quarters[index] for index in random.permutation(4)[:count]]
    shrink = random.uniform(0.6, 0.95) if count == 1 else random.uniform(0.72, 0.86)
    boxes = []
    for left, top, cell in cells:
        side = int(cell * size * shrink)
        slack = cell * size - side
        # Things that nearly touch would look like one, in small pictures too.
        shift = random.uniform(0, slack, 2) if count == 1 else random.uniform(0.3 * slack, 0.7 * slack, 2)
        boxes.append((int(left * size + shift[0]), int(top * size + shift[1]), side))
    return boxes


def _cropped(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels, "RGBA")
    return image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= 8)).getbbox())


def _is_visible(pixels: np.ndarray, background: np.ndarray) -> bool:
    """Whether most of a drawing differs from the background."""
    drawn = pixels[pixels[..., 3] >= OPAQUE][:, :3].astype(np.int64)
    return len(drawn) > 0 and float((np.abs(drawn - background).max(1) > 40).mean()) > 0.6
