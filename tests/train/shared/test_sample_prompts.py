"""Prompts of the sample sheets."""

import pytest
from helpers.pictures import random_picture

from dalle_mini_impl.data.entries import PictureEntries, PictureEntry
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.train.shared.sample_prompts import (
    PROMPTS_PER_SPLIT,
    SamplePrompt,
    choose_prompts,
    describe_prompts,
    save_sheet,
)
from dalle_mini_impl.util.save_picture import read_metadata


def entries(*captions, language=""):
    return PictureEntries.of(PictureEntry(text, "", False, (Caption(text, language),), {}) for text in captions)


TRAIN = entries(*(f"duck {number}" for number in range(150)), "common")
VALIDATION = entries(*(f"goose {number}" for number in range(5)), *["common"] * 40)


def test_prompts_of_the_settings_come_first():
    assert choose_prompts(["a cat"], TRAIN, VALIDATION, {}, 0) == [SamplePrompt("a cat")]


def test_captions_are_chosen_where_no_prompts_are_given():
    prompts = choose_prompts([], TRAIN, VALIDATION, {}, 3)
    assert [prompt.origin for prompt in prompts] == ["trained"] * PROMPTS_PER_SPLIT + ["held out"] * PROMPTS_PER_SPLIT
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    trained = {caption.text for entry in TRAIN for caption in entry.captions}
    assert all((prompt.text in trained) == (prompt.origin == "trained") for prompt in prompts)
    assert prompts == choose_prompts([], TRAIN, VALIDATION, {}, 3)
    assert prompts != choose_prompts([], TRAIN, VALIDATION, {}, 4)


@pytest.mark.parametrize(("train", "validation", "count"), [(1, 1, 2), (2, 0, 2), (1, 9, 5)])
def test_small_sets_have_fewer_prompts(train, validation, count):
    assert len(choose_prompts([], *map(PictureEntries.of, (TRAIN[:train], VALIDATION[:validation])), {}, 0)) == count


def test_captions_that_training_knows_too_are_taken_where_there_are_no_others():
    prompts = choose_prompts([], entries("a cat"), entries("a cat"), {}, 0)
    assert prompts == [SamplePrompt("a cat", "trained"), SamplePrompt("a cat", "held out")]


def test_captions_are_in_the_languages_of_training():
    captions = (Caption("a duck", "en"), Caption("eine Ente", "de"))
    both = PictureEntries.of([PictureEntry("1", "", False, captions, {})])
    for seed in range(9):
        assert choose_prompts([], both, both, {"en": 0}, seed)[0].text == "eine Ente"


def test_the_log_and_the_sheet_say_which_prompts_training_has_seen(tmp_path):
    prompts = [SamplePrompt("a duck", "trained"), SamplePrompt("a goose", "held out")]
    assert describe_prompts(prompts) == "prompts of the sample sheets: trained: 'a duck'; held out: 'a goose'"
    assert describe_prompts([SamplePrompt("a\tcat")]) == "prompts of the sample sheets: 'a cat'"
    pictures = [random_picture(seed, 16, 16) for seed in range(6)]
    save_sheet(pictures, prompts, tmp_path / "sheet.png")
    assert read_metadata(tmp_path / "sheet.png")["prompts"] == [
        {"text": "a duck", "origin": "trained"},
        {"text": "a goose", "origin": "held out"},
    ]
