"""Scenes follow from (seed, step, row) and show what their captions say."""

import numpy as np
import pytest
from helpers.scenes import SHADES, entry, make_art

from dalle_mini_impl.config.scenes import LANGUAGES
from dalle_mini_impl.data.scenes import composer
from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.composer import compose_scene, is_plain_name, scene_art
from dalle_mini_impl.data.scenes.plan import is_held_out


def scenes(art, count=40, **settings):
    return [compose_scene(art, **{"seed": 3, "step": 5, "row": row, "size": 64, **settings}) for row in range(count)]


def centre(scene, concept):
    """Middle (row, column) of the pixels that have the colour of a concept's drawing."""
    found = (np.abs(np.asarray(scene.image).astype(int) - SHADES[concept]).max(2) < 4).nonzero()
    return [positions.mean() for positions in found]


def test_scene_follows_from_seed_step_and_row():
    art = make_art()
    first, again = scenes(art), scenes(art)
    assert [(one.caption, one.image.tobytes()) for one in first] == [
        (one.caption, one.image.tobytes()) for one in again
    ]
    others = [*scenes(art, step=6), *scenes(art, seed=4)]
    assert len({one.image.tobytes() for one in first + others}) > 100


def test_first_object_is_where_the_caption_says():
    seen = set()
    for scene in scenes(make_art(), 60, tasks=("position",)):
        if scene.plan.relation == "front":
            continue
        (row, column), (other_row, other_column) = (centre(scene, one.concept) for one in scene.plan.objects)
        expected = {
            "left": column < other_column - 16,
            "right": column > other_column + 16,
            "above": row < other_row - 16,
            "below": row > other_row + 16,
        }
        assert expected[scene.plan.relation]
        seen.add(scene.plan.relation)
    assert len(seen) == 4


def test_things_are_as_many_as_said_and_do_not_overlap():
    for scene in scenes(make_art(), 30, tasks=("counting",), size=65):
        (one,) = scene.plan.objects
        drawn = np.pad(np.abs(np.asarray(scene.image).astype(int) - SHADES[one.concept]).max(2) < 4, 1)
        # The sum of the left sides of squares that do not touch, and of their upper sides.
        edges = drawn[:, 1:] & ~drawn[:, :-1], drawn[1:] & ~drawn[:-1]
        sides = np.sqrt(drawn.sum() / one.count)
        assert edges[0].sum() == pytest.approx(one.count * sides, rel=0.15)
        assert edges[1].sum() == pytest.approx(one.count * sides, rel=0.15)


def test_first_object_covers_the_second_where_it_is_in_front():
    found = [one for one in scenes(make_art(), 60, tasks=("position",)) if one.plan.relation == "front"]
    assert len(found) > 4
    for scene in found:
        pixels = np.asarray(scene.image).astype(int)
        front, rear = ((np.abs(pixels - SHADES[one.concept]).max(2) < 4) for one in scene.plan.objects)
        width = (front.any(0) & rear.any(0)).sum()
        height = (front.any(1) & rear.any(1)).sum()
        # All of a square is in front, and the one behind lacks where both would be.
        assert front.sum() == front.any(0).sum() * front.any(1).sum()
        assert front.sum() < rear.sum() + width * height
        assert rear.sum() < rear.any(0).sum() * rear.any(1).sum()


def test_sizes_show():
    for scene in scenes(make_art(), 20, tasks=("size",)):
        (one,) = scene.plan.objects
        side = (np.abs(np.asarray(scene.image).astype(int) - SHADES[one.concept]).max(2) < 4).any(0).sum()
        assert side > 50 if one.size == "big" else side < 24


@pytest.mark.parametrize(
    ("tasks", "share", "least", "most"),
    [
        (("single",), 1.0, 1.0, 1.0),
        (("colour",), 1.0, 1.0, 1.0),
        (("colour",), 0.5, 0.3, 0.7),
        (("colour",), 0.0, 0.0, 0.1),
        (("size", "counting", "two"), 1.0, 0.0, 0.0),
    ],
)
def test_single_things_may_have_the_place_and_size_of_the_vendors_picture(tasks, share, least, most):
    # In the art a square of 16 pixels stands in the middle of 32; scenes have 64.
    square = np.zeros((64, 64), dtype=bool)
    square[16:48, 16:48] = True
    placed = []
    for scene in scenes(make_art(original_placement=share), 60, tasks=tasks):
        ground = np.array(COLOURS[scene.plan.background] if scene.plan.background else (255, 255, 255))
        drawn = np.abs(np.asarray(scene.image).astype(int) - ground).max(2) > 40
        placed.append((drawn != square).mean() < 0.05)
    assert least <= np.mean(placed) <= most


def test_drawings_that_look_the_same_are_not_turned():
    with pytest.raises(ValueError, match="expected drawings that turned can be made of, found none"):
        scenes(make_art(), 1, tasks=("turned",))
    art = make_art()
    art.store.pixels[:, 8:16] = (255, 255, 255, 255)
    art.store.pixels[:, 16:20] = (0, 0, 0, 255)
    for scene in scenes(art, 10, tasks=("turned",)):
        assert scene.plan.objects[0].turn == "upside down"
        rows = np.asarray(scene.image)[:, 32].astype(int).sum(1)
        (black,) = (rows < 30).nonzero()
        (colour,) = (
            (np.abs(np.asarray(scene.image).astype(int) - SHADES[scene.plan.objects[0].concept]).max(2) < 4)
            .any(1)
            .nonzero()
        )
        assert black.mean() > colour.mean()


def test_looks_show():
    seen = set()
    for scene in scenes(make_art(), 40, tasks=("look",)):
        seen.add(scene.plan.look)
        own = (np.abs(np.asarray(scene.image).astype(int) - SHADES[scene.plan.objects[0].concept]).max(2) < 4).sum()
        assert (own > 100) == (scene.plan.look == "pixel art")
        if scene.plan.look == "outline":
            assert scene.plan.background in ("", "white")
    assert seen == {"black and white", "outline", "pixel art"}


def test_heads_wear_what_the_caption_says(monkeypatch):
    art = make_art(
        entry("cat face", "x", group="Animals & Nature"),
        entry("glad face", "x", group="Smileys & Emotion"),
        entry("crown", "x"),
        entry("glasses", "x"),
    )
    assert art.wardrobes["x"].outfits == {}
    with pytest.raises(ValueError, match="expected drawings that wearing can be made of, found none"):
        scenes(art, 1, tasks=("wearing",))
    for row in (0, 1):
        art.store.pixels[row, 2:30, 2:30] = (240, 200, 60, 255)
        art.store.pixels[row, 14:17, 8:11] = art.store.pixels[row, 14:17, 21:24] = (20, 20, 20, 255)
    art.store.pixels[3, :14] = art.store.pixels[3, 18:] = 0
    art = scene_art(art.store)
    assert art.wardrobes["x"].outfits == dict.fromkeys(("cat face", "glad face"), ("crown", "glasses"))
    assert art.concepts("x") == ["cat face", "crown"]  # smileys stand in no other scenes
    with monkeypatch.context() as patch:  # faces are searched only where something is to be worn
        patch.setattr(composer, "find_face", None)
        without = scene_art(art.store, ("single", "counting"))
    assert without.wardrobes == {}
    both = [scenes(one, 10, tasks=("single", "counting")) for one in (art, without)]
    assert [one.caption for one in both[0]] == [one.caption for one in both[1]]
    seen = set()
    for scene in scenes(art, 40, tasks=("wearing",), languages=("en",)):
        (one,) = scene.plan.objects
        seen.add((one.concept, one.wearing))
        assert one.wearing in scene.caption
        assert not is_held_out("wearing", one.wearing, one.concept)
        pixels = np.asarray(scene.image).astype(int)
        head = (np.abs(pixels - (240, 200, 60)).max(2) < 4).nonzero()[0]
        worn = (np.abs(pixels - SHADES.get(one.wearing, (9, 9, 9))).max(2) < 4).nonzero()[0]
        assert worn.min() < head.min() if one.wearing == "crown" else worn.min() > head.min()
    assert len(seen) > 2


def test_background_and_colours_are_those_said():
    for scene in scenes(make_art(), 40, tasks=("colour", "two_colours")):
        background = COLOURS[scene.plan.background] if scene.plan.background else (255, 255, 255)
        assert scene.image.getpixel((0, 0)) == background
        pixels = np.asarray(scene.image).reshape(-1, 3).astype(int)
        for one in scene.plan.objects:
            near = np.abs(pixels - COLOURS[one.colour]).max(1) < 12
            assert near.sum() > 100


def test_held_out_combinations_are_only_where_asked():
    art = make_art()
    for scene in scenes(art, tasks=("colour",)):
        assert not is_held_out("colour", scene.plan.objects[0].colour, scene.plan.objects[0].concept)
    for scene in scenes(art, 10, tasks=("colour",), split="held_out"):
        assert is_held_out("colour", scene.plan.objects[0].colour, scene.plan.objects[0].concept)


def test_style_word_is_that_of_the_vendor():
    styled = [one for one in scenes(make_art()) if "style of" in one.caption]
    assert 5 < len(styled) < 35
    assert all(one.caption.endswith(f", style of {one.vendor}") for one in styled)


def test_languages_are_those_asked():
    assert {one.language for one in scenes(make_art())} == set(LANGUAGES)
    assert {one.language for one in scenes(make_art(), 5, languages=("et",))} == {"et"}


def test_art_that_cannot_stand_in_scenes_is_left_out():
    entries = [
        entry("a", "x"),
        entry("glasses", "x"),
        entry("flag: Norway", "x"),
        entry("b", "x", kind="flag"),
        entry("c", "x", group="Symbols"),
    ]
    assert make_art(*entries).concepts("x") == ["a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", True),
        ("dress", True),
        ("glasses", False),
        ("blue book", False),
        ("sofa and lamp", False),
        ("one-thirty", False),
    ],
)
def test_names_of_one_thing_without_a_colour_are_plain(name, expected):
    assert is_plain_name(name) is expected


def test_art_that_has_no_scene_is_refused():
    art = make_art(entry("a", "x"), entry("b", "x"))
    art.store.pixels[...] = 0
    with pytest.raises(ValueError, match="expected drawings that colour can be made of, found none"):
        scenes(art, 1, tasks=("colour",))
