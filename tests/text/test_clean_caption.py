"""Marks that end a sentence are no part of a caption."""

import random

import numpy as np
import pytest
from helpers.sources import encode, put, read

from dalle_mini_impl.text.clean_caption import MARKS, QUOTES, clean_caption
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer


@pytest.mark.parametrize("mark", [*MARKS, "...", "!!!", " .", " !", ". ", "\u00a0!", ".\u200b", "\u3002\u3000", "。」"])
def test_marks_at_the_end_are_removed(mark):
    assert clean_caption(f"a red duck{mark}") == "a red duck"
    assert clean_caption(f" \t\u2003a red duck{mark}\n") == "a red duck"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat, 3d.", "a cat, 3d"),
        ("3.5.", "3.5"),
        ("what?!", "what?"),
        ("¡Un corazón rojo!", "Un corazón rojo"),
        ('"a duck."', "a duck"),
        ('"a duck".', "a duck"),
        ("“a duck.”", "a duck"),
        ("”en anka.”", "en anka"),
        ("„eine Ente.“", "eine Ente"),
        ("»eine Ente!«", "eine Ente"),
        ("« un canard ! »", "un canard"),
        ("「アヒル。」", "アヒル"),
        ("'a duck'", "a duck"),
        ('a duck."', "a duck"),
        ('a sign that says "stop."', 'a sign that says "stop"'),
        ("the dogs'.", "the dogs'"),
        ("U.S.A.!", "U.S.A."),
        ("E. T. !", "E. T."),
        ("»en anka.»", "en anka"),
        ("🙂!", "🙂"),
    ],
)
def test_marks_are_removed_with_the_quotation_marks_around_all(text, expected):
    assert clean_caption(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a duck",
        "a cat, 3d",
        "what?",
        "¿qué?",
        "St. Nicholas",
        "3.5",
        ".5 litres",
        "A.B.C.",
        "the U.S.",
        "at 5 p.m.",
        "c. q. d.",
        "ч. т. д.",
        "Islas Vírgenes de EE. UU.",
        "Hi! there",
        'a sign that says "stop"',
        '"stop" and "go"',
        "the dogs'",
        'a screen of 27"',
        "rock 'n' roll",
        "!",
        "...",
        "。",
        "❗",
        '"',
        '"!"',
        "",
        "a (small) duck)",
    ],
)
def test_everything_else_stays(text):
    assert clean_caption(text) == text


def test_a_clean_caption_stays_as_it_is():
    letters = random.Random(0)
    for _ in range(3000):
        text = "".join(letters.choices([*"ab ,1?¡", *MARKS, *QUOTES, "“"], k=letters.randint(0, 9)))
        assert clean_caption(clean_caption(text)) == clean_caption(text), text


def test_captions_and_prompts_meet(text_tokenizer):
    plain = text_tokenizer.encode("a red heart")
    for text in ("a red heart.", "A red heart!", " a  red heart 。", "“a red heart…”", "a red\u00a0heart．"):
        assert text_tokenizer.encode(text) == plain
        assert text_tokenizer.encode_with_dropout(text, 0.0, np.random.default_rng(0)) == plain
        for dropout in (0.3, 1.0):
            with_mark, without = (
                text_tokenizer.encode_with_dropout(caption, dropout, np.random.default_rng(0))
                for caption in (text, "A red heart")
            )
            assert with_mark == without
    assert (
        text_tokenizer.encode_batch(["a red heart."], 9).tolist()
        == text_tokenizer.encode_batch(["a red heart"], 9).tolist()
    )
    assert text_tokenizer.encode_beginning("a red heart.") != plain  # a caption may go on after it


def test_readers_read_clean_captions(tmp_path):
    put(tmp_path, "duck.png", encode())
    put(tmp_path, "duck.txt", "A duck.\n A  duck! \nIs it a duck?\n...\n")
    (pair,), _ = read(tmp_path)
    assert [caption.text for caption in pair.captions] == ["A duck", "Is it a duck?", "..."]


def test_the_included_model_draws_the_same_with_marks():
    tokenizer = TextTokenizer("tokenizers/emoji.model")
    for text in ("a red heart", "ein gelber Stern", "pizza, 3d", "ハート", "un corazón rojo"):
        assert tokenizer.encode(f"{text}.") == tokenizer.encode(f" {text} !") == tokenizer.encode(text)
    assert tokenizer.encode("what?") != tokenizer.encode("what")
