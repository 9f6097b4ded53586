"""A contrasting scene shows the same but for one thing, and its caption says what it shows."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.scenes import SHADES, entry, make_art

from dalle_mini_impl.data.scenes.composer import Scene, compose_scene, draw_scene
from dalle_mini_impl.data.scenes.contrast import changed_plan, compose_contrast
from dalle_mini_impl.data.scenes.plan import SIZES, SceneObject, ScenePlan, is_held_out, split_of_plan

CAT, DOG = SceneObject("a"), SceneObject("b")


def changes(plan, count=80):
    return {changed_plan(plan, list(SHADES), np.random.default_rng(seed)) for seed in range(count)}


def test_one_colour_changes_or_two_change_places():
    red, blue = replace(CAT, colour="red"), replace(DOG, colour="blue")
    plan = ScenePlan("two_colours", (red, blue), background="green")
    others = {"orange", "yellow", "purple", "pink", "brown", "black", "white"}
    expected = {replace(plan, objects=(replace(red, colour=name), blue)) for name in others}
    expected |= {replace(plan, objects=(red, replace(blue, colour=name))) for name in others}
    expected |= {replace(plan, background=name) for name in others}
    expected.add(replace(plan, objects=(replace(red, colour="blue"), replace(blue, colour="red"))))
    assert changes(plan, 600) == expected


def test_counts_and_relations_change():
    assert {one.objects[0].count for one in changes(ScenePlan("counting", (replace(CAT, count=3),)))} == {1, 2, 4}
    assert {one.relation for one in changes(ScenePlan("position", (CAT, DOG), relation="above"))} == {"below"}


def test_size_turn_look_clothes_and_who_is_in_front_change():
    assert changes(ScenePlan("size", (replace(CAT, size="big"),))) == {ScenePlan("size", (replace(CAT, size="small"),))}
    turned = changes(ScenePlan("turned", (replace(CAT, turn="mirrored"),)))
    assert {one.objects[0].turn for one in turned} == {"upside down", ""}
    drawn = changes(ScenePlan("look", (CAT,), look="outline", background="white"))
    assert {(one.look, one.background) for one in drawn} == {
        (look, "white") for look in ("black and white", "pixel art", "")
    }
    drawn = changes(ScenePlan("look", (CAT,), look="pixel art", background="red"))
    assert {(one.look, one.background) for one in drawn} == {("", "red")}  # no outline or grey picture is on red
    drawn = changes(ScenePlan("look", (CAT,), look="pixel art", background="black"))
    assert {(one.look, one.background) for one in drawn} == {("", "black"), ("black and white", "black")}
    assert changes(ScenePlan("position", (CAT, DOG), relation="front")) == {
        ScenePlan("position", (DOG, CAT), relation="front")
    }
    dressed = ScenePlan("wearing", (replace(CAT, wearing="crown"),))
    outfits = {"a": ["crown", "top hat", "glasses"]}
    found = {changed_plan(dressed, list(SHADES), np.random.default_rng(seed), outfits) for seed in range(40)}
    assert {one.objects[0].wearing for one in found} == {"top hat", "glasses"}


def test_only_where_nothing_else_can_change_another_object_comes():
    found = changes(ScenePlan("two", (CAT, DOG)), 200)
    left = set(SHADES) - {"a", "b"}
    assert {tuple(one.concept for one in plan.objects) for plan in found} == {
        *(("a", name) for name in left),
        *((name, "b") for name in left),
    }


def test_another_object_comes_where_the_one_other_value_is_held_out():
    names = (f"thing {number}" for number in range(1000))
    held_out = next(name for name in names if [is_held_out("size", size, name) for size in SIZES] == [False, True])
    art = make_art(*[entry(name, "x") for name in (held_out, *SHADES)])
    plan = ScenePlan("size", (SceneObject(held_out, size="big"),))
    scene = Scene(draw_scene(art, "x", plan, 32, np.random.default_rng(0)), plan, "a big thing", "en", "x")
    other = compose_contrast(art, scene, seed=1, step=2, row=3, size=32, languages=["en"])
    assert other.plan.objects[0].size == "big"
    assert other.plan.objects[0].concept != held_out


def test_another_head_wears_the_same():
    plan = ScenePlan("wearing", (replace(CAT, wearing="crown"),))
    outfits = {"a": ["crown"], "b": ["glasses"], "c": ["crown", "glasses"]}
    found = {
        changed_plan(plan, list(SHADES), np.random.default_rng(seed), outfits, other_object=True) for seed in range(20)
    }
    assert found == {ScenePlan("wearing", (SceneObject("c", wearing="crown"),))}
    with pytest.raises(ValueError, match="expected another object than a, found none"):
        changed_plan(plan, list(SHADES), np.random.default_rng(0), {"a": ["crown"]})


def test_contrasting_scene_is_of_the_same_art_and_of_the_training_split():
    art = make_art()
    for row in range(20):
        scene = compose_scene(art, seed=1, step=2, row=row, size=32, tasks=["counting", "position"])
        other, again = (
            compose_contrast(art, scene, seed=1, step=2, row=row + 100, size=32, languages=["en"]) for _ in range(2)
        )
        assert (other.vendor, other.language) == (scene.vendor, "en")
        assert other.plan != scene.plan
        assert split_of_plan(other.plan) == "train"
        assert (other.caption, other.image.tobytes()) == (again.caption, again.image.tobytes())


def test_what_cannot_be_drawn_otherwise_is_refused():
    art = make_art()
    scene = compose_scene(art, seed=1, step=2, row=3, size=32, tasks=["counting"])
    invisible = replace(art, store=replace(art.store, pixels=np.zeros_like(art.store.pixels)))
    with pytest.raises(ValueError, match=r"with which '.*' can be changed, found none"):
        compose_contrast(invisible, scene, seed=1, step=2, row=3, size=32, languages=["en"])
