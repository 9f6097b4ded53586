"""What a visitor may ask for."""

import math

import pytest

from dalle_mini_impl.app.limits import (
    MAX_LABEL_TEXT,
    MAX_LABELS,
    MAX_PROMPT,
    labels_problem,
    number_problem,
    prompt_problem,
    read_labels,
)


def test_prompts():
    assert prompt_problem("a cat") == ""
    assert prompt_problem("", required=False) == ""
    assert "got none" in prompt_problem("  ")
    assert "got none" in prompt_problem(None)
    assert prompt_problem("x" * MAX_PROMPT) == ""
    assert f"got {MAX_PROMPT + 1}" in prompt_problem("x" * (MAX_PROMPT + 1))


@pytest.mark.parametrize("value", [1, 5, 5.0])
def test_numbers_in_their_range_are_allowed(value):
    assert number_problem(value, 1, 5, whole=True) == ""


@pytest.mark.parametrize("value", [0, 6, 1.5, None, "3", True, math.nan, math.inf])
def test_other_numbers_are_not(value):
    assert number_problem(value, 1, 5, whole=True).startswith("Expected a whole number")


def test_labels_are_separated_by_lines_and_commas():
    assert read_labels("a cat, a dog\n\na cat\nein Stern,") == ["a cat", "a dog", "ein Stern"]


def test_labels_are_bounded():
    assert labels_problem("a, b") == ""
    assert "at least two" in labels_problem("a, a")
    assert "at least two" in labels_problem(None)
    assert "got more" in labels_problem(",".join(map(str, range(MAX_LABELS + 1))))
    assert "got more" in labels_problem("a," + "b" * MAX_LABEL_TEXT)
