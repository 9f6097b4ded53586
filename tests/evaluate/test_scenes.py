"""What a picture of a scene shows, whether that is its caption, and how often a model's pictures do."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_mini_impl.cli.evaluate.scenes import scene_table, write_sheet
from dalle_mini_impl.config.scenes import JUDGED_TASKS, LANGUAGES
from dalle_mini_impl.data.entries import PictureEntry
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.scenes.composer import Scene, scene_art
from dalle_mini_impl.data.scenes.looks import with_look
from dalle_mini_impl.data.scenes.plan import LOOKS, SceneObject, ScenePlan
from dalle_mini_impl.evaluate.judges import pixel_judge
from dalle_mini_impl.evaluate.scene_judge import FoundPart, FoundScene, build_scene_judge
from dalle_mini_impl.evaluate.scene_parts import CUT_OUT_SIZE, cut_out, find_parts, label_regions
from dalle_mini_impl.evaluate.scenes import (
    SceneSettings,
    has_background,
    has_style,
    is_shown,
    scene_rows,
    scenes_of,
)
from dalle_mini_impl.util.errors import UserError

VENDORS = ("x", "y", "z")
NAMES = [f"thing{letter}" for letter in "abcdefghijklmn"]


@pytest.fixture(scope="module")
def art():
    """Three vendors' drawings of 14 things: a light square with a dark pattern of its own."""
    random = np.random.default_rng(0)
    patterns = random.random((len(NAMES), 4, 4)) < 0.4
    pixels, entries = [], []
    for vendor, shade in zip(VENDORS, (0, 8, 16), strict=True):
        for name, pattern in zip(NAMES, patterns, strict=True):
            dark = np.kron(np.pad(pattern, 1), np.ones((8, 8), bool))
            rgba = np.zeros((64, 64, 4), np.uint8)
            rgba[8:56, 8:56] = np.where(dark[..., None], (20, 110 + shade, 60, 255), (120, 215 + shade, 150, 255))
            pixels.append(rgba)
            captions = [
                Caption(text, language) for language in LANGUAGES for text in (name, f"{name}, style of {vendor}")
            ]
            details = {"concept": name, "vendor": vendor, "kind": "plain", "group": "Objects"}
            entries.append(PictureEntry(f"{vendor}-{name}", "train", True, tuple(captions), details))
    return scene_art(PictureStore(np.stack(pixels), np.arange(len(pixels)), entries))


@pytest.fixture(scope="module")
def judge(art):
    return build_scene_judge(art, pixel_judge())


def two_squares():
    picture = np.full((96, 96, 3), (250, 215, 50), np.uint8)
    picture[10:34, 8:40] = (220, 40, 40)
    picture[60:80, 50:90] = (40, 110, 225)
    return picture


def test_parts_have_colour_place_and_a_cut_out():
    found = find_parts(two_squares())
    assert found.background == "yellow"
    assert sorted((part.colour, part.centre) for part in found.parts) == [
        ("blue", (70 / 96, 70 / 96)),
        ("red", (24 / 96, 22 / 96)),
    ]
    assert all(part.cut_out.shape == (3, CUT_OUT_SIZE, CUT_OUT_SIZE) for part in found.parts)
    assert find_parts(np.full((64, 64, 3), 255, np.uint8)).parts == ()


def test_specks_are_no_parts_and_small_gaps_are_bridged():
    picture = two_squares()
    picture[90:92, 4:6] = 0
    picture[10:34, 22:24] = (250, 215, 50)  # cuts the red square in two
    assert len(find_parts(picture).parts) == 2


def test_regions_touch_at_corners_but_not_over_gaps():
    drawn = np.zeros((9, 9), bool)
    drawn[0, 0] = drawn[1, 1] = drawn[8, 0] = True
    labels = label_regions(drawn, 1)
    assert labels[0, 0] == labels[1, 1] > 0
    assert labels[8, 0] not in (0, labels[0, 0])
    assert not labels[~drawn].any()


def test_cut_out_is_centred_on_white():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[5:15, 20:40] = (0, 0, 0, 255)
    pixels = cut_out(rgba)
    assert pixels[:, 0].min() > 0.99
    middle = pixels[0, CUT_OUT_SIZE // 2]
    assert middle[CUT_OUT_SIZE // 2] == -1
    dark = torch.nonzero(middle < 0).flatten()
    assert abs(dark[0] + dark[-1] - (CUT_OUT_SIZE - 1)) <= CUT_OUT_SIZE / 23  # a pixel of the drawing


def part(concept, colour="red", centre=(0.5, 0.5), vendor="x"):
    return FoundPart(concept, vendor, colour, centre)


def shown(objects, *parts, **plan):
    scene = Scene(Image.new("RGB", (8, 8)), ScenePlan("task", objects, **plan), "", "en", "x")
    return is_shown(scene, FoundScene("white", parts))


def test_one_object_may_have_company_but_a_number_is_exact():
    cat, two_cats = (SceneObject("cat"),), (SceneObject("cat", count=2),)
    assert shown(cat, part("dog"), part("cat"))
    assert not shown(cat, part("dog"))
    assert shown(two_cats, part("cat"), part("cat"))
    assert not shown(two_cats, part("cat"))
    assert not shown(two_cats, *[part("cat")] * 3)


def test_colours_belong_to_their_objects():
    plan = (SceneObject("cat", "red"), SceneObject("dog", "blue"))
    assert shown(plan, part("dog", "blue"), part("cat", "red"))
    assert not shown(plan, part("dog", "red"), part("cat", "blue"))
    assert not shown(plan[:1], part("cat", "blue"))


def test_places_are_seen_from_the_second_object():
    plan = (SceneObject("cat"), SceneObject("dog"))
    places = {"left": (0.2, 0.5), "right": (0.8, 0.5), "above": (0.5, 0.2), "below": (0.5, 0.8)}
    for relation in places:
        for place, centre in places.items():
            right = shown(plan, part("cat", centre=centre), part("dog"), relation=relation)
            assert right == (relation == place), (relation, place)
    assert shown(plan, part("cat"), part("dog"))
    assert not shown(plan, part("cat"))


def test_size_turn_and_look_are_those_of_the_thing():
    def found(**changes):
        return replace(part("cat"), **changes)

    for size, right in (("big", [0.8, 0.7]), ("small", [0.45, 0.3])):
        plan = (SceneObject("cat", size=size),)
        assert [extent for extent in (0.8, 0.7, 0.6, 0.5, 0.45, 0.3) if shown(plan, found(extent=extent))] == right
    turned = (SceneObject("cat", turn="upside down"),)
    assert shown(turned, found(turn="upside down"))
    assert not shown(turned, found())
    plain = (SceneObject("cat"),)
    for look in LOOKS:
        assert [other for other in ("", *LOOKS) if shown(plain, found(look=other), look=look)] == [look]


def drawing(look, side=104, seed=0):
    """A round thing with a bright pattern, in a look, on white."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96] / 48 - 0.99
    rgba = np.zeros((96, 96, 4), np.uint8)
    for radius in (0.98, 0.7, 0.4):
        inside = np.hypot(y * (1 + 0.2 * random.random()), x) < radius
        rgba[inside] = (*random.integers(40, 230, 3), 255)
    image = Image.fromarray(rgba, "RGBA")
    image = with_look(image, look, side) if look else image
    scale = side / max(image.size)
    fitting = image if look == "pixel art" else image.resize([round(scale * length) for length in image.size])
    picture = Image.new("RGBA", (128, 128), (255, 255, 255, 255))
    picture.alpha_composite(fitting, (12, 12))
    return picture.convert("RGB")


@pytest.mark.parametrize("size", [128, 64])
@pytest.mark.parametrize("look", ["", *LOOKS])
def test_looks_are_told_by_pixels(look, size):
    pictures = [
        np.asarray(drawing(look, 80 + 3 * seed, seed).resize((size, size), Image.Resampling.LANCZOS))
        for seed in range(8)
    ]
    largest = [max(find_parts(picture).parts, key=lambda part: part.extent) for picture in pictures]
    assert [part.look for part in largest].count(look) >= 7
    assert all(abs(part.extent - (80 + 3 * seed) / 128) < 0.1 for seed, part in enumerate(largest))


def test_backgrounds_and_styles():
    scene = Scene(Image.new("RGB", (8, 8)), ScenePlan("single", (SceneObject("cat"),)), "", "en", "x")
    assert has_background(scene, FoundScene("white", ()))
    assert not has_background(scene, FoundScene("red", ()))
    assert has_style(scene, FoundScene("", (part("cat", vendor="y"), part("cat", vendor="x"))))
    assert not has_style(scene, FoundScene("", (part("cat", vendor="y"),)))


class StandIn:
    """A model that draws what a function returns for a caption."""

    def __init__(self, draw):
        self.image_tokenizer = SimpleNamespace(config=SimpleNamespace(size=(64, 64)))
        self.draw = draw

    def generate(self, caption, candidates, keep, seed, transparent):
        assert not transparent  # the ground is judged as well
        picture = self.draw(caption).resize((64, 64))
        return [SimpleNamespace(image=picture)] * keep


SETTINGS = SceneSettings(scenes=4, candidates=2, languages=("en", "de"), seed=1)


@pytest.fixture(scope="module")
def composed(judge):
    """Caption -> composed picture, of all scenes that are measured."""
    return {
        scene.caption: scene.image
        for language in SETTINGS.languages
        for split in ("train", "held_out")
        for task in JUDGED_TASKS
        if (task, split) != ("single", "held_out")
        for scene in scenes_of(judge.art, SETTINGS, task, split, language)
    }


def test_who_draws_the_scenes_is_right_and_who_draws_one_is_not(judge, composed, tmp_path):
    honest = [(rows, drawn) for rows, drawn in scene_rows(StandIn(composed.__getitem__), judge, SETTINGS)]
    rows = [row for some, _ in honest for row in some]
    assert len(rows) == 2 * (17 + 4)  # tasks of both splits, then backgrounds and styles, in two languages
    assert all(row.best.value == row.true.value == 1 for row in rows if row.task != "style"), rows
    assert all(row.mean == row.best for row in rows)
    # Of few things hardly any combination is held out, so that other captions are at times the same.
    assert np.mean([row.shuffled.value for row in rows if row.task in JUDGED_TASKS]) < 0.4
    table = scene_table(rows, 2)
    assert "two_colours" in table
    assert "best of 2" in table
    write_sheet([one for _, drawn in honest for one in drawn][:6], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 2 * 3 * 64
    same = composed[next(iter(composed))]
    rows = [row for some, _ in scene_rows(StandIn(lambda _: same), judge, SETTINGS) for row in some]
    assert all(row.best.value < 0.5 for row in rows if row.task in JUDGED_TASKS)
    assert all(row.true.value == 1 for row in rows if row.task in JUDGED_TASKS)


def test_scenes_for_training_and_for_measuring_share_no_combination(judge):
    for task in JUDGED_TASKS[1:]:
        plans = [
            {repr((scene.plan.objects, scene.plan.look)) for scene in scenes_of(judge.art, SETTINGS, task, split, "en")}
            for split in ("train", "held_out")
        ]
        assert not plans[0] & plans[1]


def test_a_judge_that_knows_too_little_is_refused(art):
    few = {vendor: dict(list(rows.items())[:3]) for vendor, rows in art.rows.items()}
    with pytest.raises(UserError, match="build the emoji set with more vendors"):
        build_scene_judge(type(art)(art.store, few, art.names, art.styles), pixel_judge())


def test_other_data_are_refused_in_one_line(refused, tiny_model, trained):
    error = refused("evaluate", "scenes", tiny_model, "--data", trained.folder / "store")
    assert "expected the emoji set" in error
    assert error.count("\n") == 1


def test_what_cannot_be_judged_is_left_out(judge, refused):
    scenes = scenes_of(judge.art, SceneSettings(scenes=30), "position", "train", "en")
    assert len(scenes) == 30
    assert {scene.plan.relation for scene in scenes} == {"left", "right", "above", "below"}
    turned = scenes_of(judge.art, SceneSettings(scenes=10), "turned", "train", "en")
    assert {scene.plan.objects[0].turn for scene in turned} == {"upside down"}
    error = refused("evaluate", "scenes", "--task", "wearing")
    assert "'wearing' is not one of 'single', 'two', 'position', 'counting', 'colour', 'two_colours', 'size'," in error
    assert error.count("\n") == 1
