"""What scenes show, and which combinations are held out."""

import numpy as np
import pytest

from dalle_mini_impl.config.scenes import TASKS
from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.plan import SceneObject, ScenePlan, combinations, draw_plan, is_held_out, split_of_plan

CONCEPTS = [f"thing {number}" for number in range(40)]


OUTFITS = dict.fromkeys(CONCEPTS[:20], ("crown", "glasses"))


def plans(task, split, count=200):
    return [draw_plan(np.random.default_rng([7, row]), CONCEPTS, task, split, OUTFITS) for row in range(count)]


def test_held_out_combinations_are_fixed():
    table = [("colour", colour, concept) for colour in COLOURS for concept in CONCEPTS]
    held_out = [parts for parts in table if is_held_out(*parts)]
    assert 40 < len(held_out) < 80  # 15 % of 400
    # These never change, or models that were trained before have seen what is held out.
    assert held_out[:3] == [("colour", "red", "thing 2"), ("colour", "red", "thing 4"), ("colour", "red", "thing 11")]


@pytest.mark.parametrize("task", TASKS)
def test_training_has_no_held_out_combination(task):
    for plan in plans(task, "train"):
        assert plan.task == task
        assert not any(is_held_out(*parts) for parts in combinations(plan))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "single"])
def test_held_out_scenes_have_one(task):
    for plan in plans(task, "held_out"):
        assert any(is_held_out(*parts) for parts in combinations(plan))
        assert split_of_plan(plan) == "held_out"


def test_single_objects_are_never_held_out():
    with pytest.raises(ValueError, match="held_out combinations of 40 concepts, got 'single'"):
        draw_plan(np.random.default_rng(0), CONCEPTS, "single", "held_out")


def test_tasks_have_what_they_say():
    for plan in plans("position", "train"):
        assert len({one.concept for one in plan.objects}) == 2
    relations = {plan.relation for plan in plans("position", "train")}
    assert relations == {"left", "right", "above", "below", "front"}
    assert {plan.objects[0].size for plan in plans("size", "train")} == {"big", "small"}
    assert {plan.objects[0].turn for plan in plans("turned", "train")} == {"upside down", "mirrored"}
    looks = {(plan.look, plan.background) for plan in plans("look", "train", 600)}
    assert {look for look, _ in looks} == {"black and white", "outline", "pixel art"}
    assert {background for look, background in looks if look == "outline"} == {"", "white"}
    assert {background for look, background in looks if look == "black and white"} == {"", "white", "black"}
    assert {background for look, background in looks if look == "pixel art"} == {"", *COLOURS}
    for plan in plans("wearing", "train"):
        assert plan.objects[0].wearing in OUTFITS[plan.objects[0].concept]
    assert {plan.objects[0].count for plan in plans("counting", "train")} == {2, 3, 4}
    for plan in plans("two_colours", "train"):
        first, second = (one.colour for one in plan.objects)
        assert first != second
        assert plan.background not in (first, second)
    assert {plan.background for plan in plans("single", "train", 400)} == {"", *COLOURS}


def test_plans_that_show_the_same_have_one_name():
    cat, dog = SceneObject("cat", colour="red"), SceneObject("dog")
    assert ScenePlan("colour", (cat,)).name == ScenePlan("single", (cat,), background="white").name
    assert ScenePlan("turned", (dog,), background="white").name == "dog"
    assert ScenePlan("two", (cat, dog)).name == ScenePlan("two", (dog, cat)).name
    names = {
        ScenePlan("position", (cat, dog), relation).name for relation in ("left", "right", "above", "below", "front")
    }
    others = {ScenePlan("position", (dog, cat), relation).name for relation in ("right", "left", "below", "above")}
    assert len(names) == 5
    assert others < names
    assert ScenePlan("position", (dog, cat), "front").name not in names


def test_properties_are_held_out_with_their_concepts():
    cat = SceneObject("cat", size="big", turn="mirrored", wearing="crown")
    assert combinations(ScenePlan("task", (cat,), look="outline")) == [
        ("size", "big", "cat"),
        ("turn", "mirrored", "cat"),
        ("wearing", "crown", "cat"),
        ("look", "outline", "cat"),
    ]


def test_nothing_is_worn_where_nothing_fits():
    with pytest.raises(ValueError, match="got 'wearing'"):
        draw_plan(np.random.default_rng(0), CONCEPTS, "wearing", "train")


def test_order_of_two_concepts_does_not_matter():
    plan = plans("two", "train", 1)[0]
    swapped = type(plan)(plan.task, plan.objects[::-1])
    assert combinations(plan)[-1] == combinations(swapped)[-1]
