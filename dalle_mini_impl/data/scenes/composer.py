"""Composes captioned scenes from pictures with transparency; each follows from (seed, step, row) alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from dalle_mini_impl.config.scenes import LANGUAGES, TASKS
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.scenes.captions import scene_caption
from dalle_mini_impl.data.scenes.colours import COLOURS, OPAQUE, recolour
from dalle_mini_impl.data.scenes.layout import boxes, fitted, overlapping_boxes
from dalle_mini_impl.data.scenes.looks import turn, with_look
from dalle_mini_impl.data.scenes.plan import SceneObject, ScenePlan, Split, draw_plan
from dalle_mini_impl.data.scenes.wearing import WORN, Wardrobe, dress, find_face, is_head
from dalle_mini_impl.util.errors import UserError

GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")
"""Unicode groups of what can stand in a scene."""
NOT_IN_NAMES = ("and", "o’clock", "thirty", "locked", "unlocked", "volume", "small")
"""Words in names of two things, of times, of what is no thing, and of sizes."""
MAX_COVER = 0.8
"""Largest share of its frame that a drawing may cover; those above are pictures of scenes or signs."""
STYLE_SHARE = 0.5
"""Share of captions with the vendor's style word."""
WEARING = "wearing"
"""The task that needs faces."""
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
    wardrobes: dict[str, Wardrobe] = field(default_factory=dict)
    """Vendor -> heads that can wear something, and what."""
    original_placement: float = 0.0
    """See `ScenesConfig`."""

    def concepts(self, vendor: str) -> list[str]:
        """Concepts of a vendor that have a name in every language, in order."""
        return self._concepts[vendor]

    @cached_property
    def _concepts(self) -> dict[str, list[str]]:
        tables = self.names.values()
        return {
            vendor: [name for name in sorted(rows) if all(name in table for table in tables)]
            for vendor, rows in self.rows.items()
        }


@dataclass(frozen=True)
class Scene:
    """A composed scene."""

    image: Image.Image
    """RGB."""
    plan: ScenePlan
    caption: str
    language: str
    vendor: str


def scene_art(store: PictureStore, tasks: Sequence[str] = TASKS, original_placement: float = 0.0) -> SceneArt:
    """Choose the pictures of a store of the emoji set that can stand in scenes.

    Left out are groups other than `GROUPS`, names that no caption can be made of (see `is_plain_name`), and drawings
    that fill their frame. Heads of any group are kept as well where they can wear something, and what can be worn.

    Args:
        store: of the emoji set.
        tasks: that the art is for; without `wearing` no faces are searched, which takes seconds.
        original_placement: see `ScenesConfig`.

    Raises:
        UserError: no picture is left.
    """
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    names: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    styles: dict[str, str] = {}
    wardrobes: dict[str, Wardrobe] = defaultdict(Wardrobe)
    for index, entry in enumerate(store.entries):
        details = entry.details
        if details.get("kind") != "plain" or not {"group", "concept", "vendor"} <= set(details):
            continue
        concept, vendor, used = details["concept"], details["vendor"], False
        if concept in WORN and WEARING in tasks:
            wardrobes[vendor].things[concept] = index
            used = True
        may_wear = WEARING in tasks and is_head(concept, details["group"])
        if is_plain_name(concept) and (details["group"] in GROUPS or may_wear):
            pixels = store.take(np.array([index]))[0]
            face = find_face(pixels) if may_wear else None
            if face is not None:
                wardrobes[vendor].heads[concept] = (index, face)
                used = True
            if details["group"] in GROUPS and (pixels[..., 3] >= OPAQUE).mean() <= MAX_COVER:
                rows[vendor][concept] = index
                used = True
        for language in LANGUAGES if used else ():
            texts = [caption.text for caption in entry.captions if caption.language == language]
            if len(texts) > 1:  # the name, then the name with the style word
                names[language][concept] = texts[0]
                styles.setdefault(vendor, texts[1].removeprefix(f"{texts[0]}, "))
    if not rows:
        raise UserError(
            "expected the emoji set with transparency, got pictures of which none can stand in a scene; "
            "build it with `dalle data emoji` and `dalle data store`"
        )
    named = set.intersection(*(set(table) for table in names.values()))
    wardrobes = {vendor: wardrobe.only(named) for vendor, wardrobe in wardrobes.items()}
    return SceneArt(store, dict(rows), names, styles, wardrobes, original_placement)


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
        task = str(random.choice(list(tasks)))
        outfits = art.wardrobes[vendor].outfits if vendor in art.wardrobes else {}
        if task == WEARING and not outfits:
            continue
        plan = draw_plan(random, art.concepts(vendor), task, split, outfits)
        image = draw_scene(art, vendor, plan, size, random)
        if image is not None:
            break
    else:
        raise ValueError(f"expected drawings that {', '.join(tasks)} can be made of, found none")
    language = str(random.choice(list(languages)))
    return Scene(image, plan, worded(art, plan, vendor, language, random), language, vendor)


def worded(art: SceneArt, plan: ScenePlan, vendor: str, language: str, random: np.random.Generator) -> str:
    """A caption of a scene of a vendor's art, some with the vendor's style word."""
    style = art.styles.get(vendor, "") if random.random() < STYLE_SHARE else ""
    return scene_caption(plan, art.names[language], language, random, style)


def draw_scene(
    art: SceneArt, vendor: str, plan: ScenePlan, size: int, random: np.random.Generator
) -> Image.Image | None:
    """Draw a plan as an RGB picture; None where a drawing cannot be what the plan says, or vanishes on what is behind.

    That is one that cannot have its colour, looks the same when turned over, or has no face for what it should wear.
    """
    background = np.array(COLOURS[plan.background]) if plan.background else np.full(3, 255)
    drawings: list[np.ndarray] = []
    sprites: list[Image.Image] = []
    for one in plan.objects:
        pixels = _pixels(art, vendor, one)
        sprite = None if pixels is None else _sprite(pixels, one.turn)
        if pixels is None or sprite is None:
            return None
        if plan.look == "black and white":
            sprite = with_look(sprite, plan.look, size)
        if plan.look != "outline" and not _is_visible(np.asarray(sprite), background):
            return None
        drawings.append(pixels)
        sprites += [sprite] * one.count
    image = Image.new("RGBA", (size, size), tuple(int(value) for value in background))
    if art.original_placement and _can_keep_placement(plan) and random.random() < art.original_placement:
        image.alpha_composite(Image.fromarray(drawings[0], "RGBA").resize((size, size), Image.Resampling.LANCZOS))
        return image.convert("RGB")
    places = overlapping_boxes(sprites, size, random) if plan.relation == "front" else boxes(plan, size, random)
    if places is None:
        return None
    for sprite, box in reversed(list(zip(sprites, places, strict=True))):  # the first thing is in front
        left, top, side = box
        drawn = with_look(sprite, plan.look, side) if plan.look in ("outline", "pixel art") else sprite
        if plan.look == "pixel art":  # its pixels are those of the picture
            side = max(drawn.size)
        image.alpha_composite(*fitted(drawn, (left, top, side)))
    return image.convert("RGB")


def _can_keep_placement(plan: ScenePlan) -> bool:
    """Whether a scene shows one thing, at most recoloured, so that it can stand as in the vendor's picture."""
    one = plan.objects[0]
    return len(plan.objects) == one.count == 1 and not (one.size or one.turn or one.wearing or plan.look)


def _pixels(art: SceneArt, vendor: str, one: SceneObject) -> np.ndarray | None:
    """The picture (S, S, 4) of one thing, not turned over; None where it cannot be what it should."""
    if one.wearing:
        wardrobe = art.wardrobes.get(vendor, Wardrobe())
        if one.wearing not in wardrobe.outfits.get(one.concept, ()):
            return None
        row, face = wardrobe.heads[one.concept]
        thing = art.store.take(np.array([wardrobe.things[one.wearing]]))[0]
        pixels = dress(art.store.take(np.array([row]))[0], face, thing, one.wearing)
    else:
        pixels = art.store.take(np.array([art.rows[vendor][one.concept]]))[0]
        pixels = recolour(pixels, one.colour) if one.colour else pixels
    return pixels if pixels is not None and (pixels[..., 3] >= OPAQUE).any() else None


def _sprite(pixels: np.ndarray, how: str) -> Image.Image | None:
    """A drawing, cropped and turned over if it should be; None where that would not show."""
    image = Image.fromarray(pixels, "RGBA")
    cropped = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= 8)).getbbox())
    return turn(cropped, how) if how else cropped


def _is_visible(pixels: np.ndarray, background: np.ndarray) -> bool:
    """Whether most of a drawing differs from the background."""
    drawn = pixels[pixels[..., 3] >= OPAQUE][:, :3].astype(np.int64)
    return len(drawn) > 0 and float((np.abs(drawn - background).max(1) > 40).mean()) > 0.6
