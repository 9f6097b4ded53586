"""Captions of scenes."""

from unittest import mock

import numpy as np
import pytest

from dalle_mini_impl.config.scenes import LANGUAGES
from dalle_mini_impl.data.scenes import captions
from dalle_mini_impl.data.scenes.captions import WORDS, plural, scene_caption, with_article
from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.plan import SceneObject, ScenePlan

NAMES = {"cat": "Katze", "dog": "Hund"}
SAME = {"cat": "cat", "dog": "dog", "orange": "orange"}
CAT, DOG = SceneObject("cat"), SceneObject("dog")


def wordings(plan, names=SAME, language="en", style="", keywords=0.0):
    with mock.patch.object(captions, "KEYWORD_SHARE", keywords):
        return {scene_caption(plan, names, language, np.random.default_rng(row), style) for row in range(60)}


def test_english_sentences():
    assert wordings(ScenePlan("single", (CAT,))) == {"a cat"}
    assert wordings(ScenePlan("two", (CAT, DOG))) == {"a cat and a dog"}
    assert wordings(ScenePlan("counting", (SceneObject("cat", count=3),))) == {"three cats", "3 cats"}
    assert wordings(ScenePlan("position", (CAT, DOG), relation="left")) == {
        "a cat to the left of a dog",
        "a cat left of a dog",
        "a cat on the left of a dog",
    }
    assert wordings(ScenePlan("colour", (SceneObject("cat", "orange"),), background="orange")) == {
        "an orange cat on an orange background",
        "an orange cat in front of an orange background",
        "an orange cat, orange background",
    }
    two = (SceneObject("cat", "blue"), SceneObject("dog", "red"))
    assert wordings(ScenePlan("two_colours", two), style="3d") == {"a blue cat and a red dog, 3d"}


def test_english_keywords():
    two = (SceneObject("cat", "blue"), SceneObject("dog", "red"))
    assert wordings(ScenePlan("two_colours", two, background="orange"), keywords=1.0) == {
        "blue cat, red dog, orange background"
    }
    assert wordings(
        ScenePlan("wearing", (SceneObject("cat", wearing="crown"),)), SAME | {"crown": "crown"}, "en", "3d", 1
    ) == {f"cat {text}, 3d" for text in ("wearing crown", "with crown", "that wears crown", "with crown on its head")}
    plan = ScenePlan("colour", two[:1])
    drawn = [scene_caption(plan, SAME, "en", np.random.default_rng(row)) for row in range(400)]
    assert set(drawn) == {"a blue cat", "blue cat"}
    assert 70 < drawn.count("blue cat") < 130  # a quarter


def test_english_wordings_of_what_things_look_like():
    assert wordings(ScenePlan("size", (SceneObject("orange", size="big"),))) == {
        "a big orange",
        "a large orange",
        "a huge orange",
    }
    assert wordings(ScenePlan("turned", (SceneObject("cat", turn="upside down"),))) == {
        "an upside-down cat",
        "a cat upside down",
        "a cat turned upside down",
        "a cat, upside down",
    }
    assert wordings(ScenePlan("look", (CAT,), look="pixel art")) == {
        "pixel art of a cat",
        "a pixel art cat",
        "a cat as pixel art",
        "a pixelated cat",
        "a cat, pixel art",
    }
    assert "a line drawing of an orange" in wordings(ScenePlan("look", (SceneObject("orange"),), look="outline"))
    assert wordings(ScenePlan("position", (CAT, DOG), relation="front", background="red")) >= {
        "a cat in front of a dog on a red background",
        "a dog behind a cat, red background",
    }


def test_english_wordings_of_what_is_worn():
    names = {"cat face": "cat face", "cat": "cat", "sad face": "sad face", "crown": "crown", "glasses": "glasses"}
    crowned = wordings(ScenePlan("wearing", (SceneObject("cat face", wearing="crown"),)), names)
    assert crowned == {
        text.format(name)
        for name in ("a cat face", "a cat")
        for text in ("{} wearing a crown", "{} with a crown", "{} that wears a crown", "{} with a crown on its head")
    }
    assert wordings(ScenePlan("wearing", (SceneObject("sad face", wearing="glasses"),)), names) == {
        "a sad face wearing glasses",
        "a sad face with glasses",
        "a sad face that wears glasses",
        "a sad face with glasses on its nose",
    }


def test_lists_of_what_things_look_like():
    assert wordings(ScenePlan("size", (SceneObject("cat", size="small"),)), NAMES, "de") == {"Katze (Größe: klein)"}
    turned = ScenePlan("turned", (SceneObject("cat", turn="mirrored"),), background="red")
    assert wordings(turned, NAMES, "de") == {"Katze, gespiegelt, Hintergrund: rot"}
    names = {"cat": "kat", "dog": "hond", "crown": "kroon"}
    assert wordings(ScenePlan("look", (CAT,), look="black and white"), names, "nl") == {"kat, zwart-wit"}
    assert wordings(ScenePlan("wearing", (SceneObject("cat", wearing="crown"),)), names, "nl") == {"kat, draagt: kroon"}
    assert wordings(ScenePlan("position", (CAT, DOG), relation="front"), names, "nl") == {"voor: kat, achter: hond"}


def test_lists_of_other_languages():
    plan = ScenePlan("position", (CAT, DOG), relation="below", background="blue")
    assert wordings(plan, NAMES, "de") == {"unten: Katze, oben: Hund, Hintergrund: blau"}
    plan = ScenePlan("colour", (SceneObject("cat", "blue"),), background="red")
    assert wordings(plan, {"cat": "mačka"}, "sl") == {"mačka (barva: modra), ozadje: rdeče"}
    assert wordings(plan, {"cat": "kass"}, "et") == {"kass (värv: sinine), taust: punane"}
    plan = ScenePlan("counting", (SceneObject("cat", count=4),))
    assert wordings(plan, {"cat": "katt"}, "no") == {"4 × katt"}
    assert wordings(ScenePlan("two", (CAT, DOG)), {"cat": "kat", "dog": "hond"}, "nl", "flat") == {"kat, hond, flat"}


def test_every_language_has_every_colour():
    assert ("en", *WORDS) == LANGUAGES
    for words in WORDS.values():
        assert len(set(words.colours)) == len(COLOURS)
        assert len(words.background_colours) in (0, len(COLOURS))
        assert [len(set(some)) for some in (words.sizes, words.turns, words.looks)] == [2, 2, 3]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cats"),
        ("cat face", "cat faces"),
        ("fox", "foxes"),
        ("cherry", "cherries"),
        ("monkey", "monkeys"),
        ("slice of pizza", "slices of pizza"),
        ("cloud with rain", "clouds with rain"),
        ("mouse", "mice"),
        ("maple leaf", "maple leaves"),
    ],
)
def test_plural(name, expected):
    assert plural(name) == expected


def test_article():
    assert [with_article(name) for name in ("owl", "cat", "orange cat")] == ["an owl", "a cat", "an orange cat"]
