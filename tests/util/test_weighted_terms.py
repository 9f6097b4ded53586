"""Prompt terms with numbers behind colons."""

from pathlib import Path

import pytest

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.weighted_terms import split_term

TABLE = [
    ("a fox", "a fox", []),
    ("a fox:1.0", "a fox", [1.0]),
    ("text:-0.3", "text", [-0.3]),
    ("snow:.4", "snow", [0.4]),
    ("snow:+2", "snow", [2.0]),
    ("a fox:2:-.5", "a fox", [2.0, -0.5]),
    ("a fox:1:2:3", "a fox:1", [2.0, 3.0]),
    ("Batman: year one", "Batman: year one", []),
    ("Batman: 1", "Batman", [1.0]),
    (r"Batman\: 1", "Batman: 1", []),
    ("text: -0.3", "text", [-0.3]),
    ("text : -0.3 ", "text", [-0.3]),
    ("text:\t+.5\n", "text", [0.5]),
    ("text:\u22120.3", "text", [-0.3]),
    ("text: \u2013 0.3", "text", [-0.3]),
    ("text:\u20130.3:\u2014.5", "text", [-0.3, -0.5]),
    ("text:\uff0d0.3", "text", [-0.3]),
    ("text:1e3", "text", [1000.0]),
    ("text:-2.5E-1", "text", [-0.25]),
    ("text:0,5", "text", [0.5]),
    ("text:-0,125", "text", [-0.125]),
    ("text:50%", "text", [0.5]),
    ("text: -12,5 %", "text", [-0.125]),
    ("text:50%:0.1", "text", [0.5, 0.1]),
    ("狐狸：0.5", "狐狸", [0.5]),
    ("fox:٣", "fox", [3.0]),
    ("text:1,000", "text", None),
    ("text:1.000,5", "text", None),
    ("text:1/2", "text", None),
    ("text:--0.3", "text", None),
    ("text:0.3.5", "text", None),
    ("text:1e999", "text", None),
    ("text:1'000", "text", None),
    ("text:5e", "text", None),
    (r"aspect 16\:9/2", "aspect 16:9/2", []),
    ("text:-", "text:-", []),
    ("at 12:30pm", "at 12:30pm", []),
    ("Chapter 3: 2 dogs", "Chapter 3: 2 dogs", []),
    ("http://a.b/c", "http://a.b/c", []),
    ("my photo.JPG : 50%", Path("my photo.JPG"), [0.5]),
    ("note:", "note:", []),
    ("a:inf", "a:inf", []),
    ("clock at 12:30", "clock at 12", [30.0]),  # a number by the syntax; a backslash makes it a time
    (r"clock at 12\:30", "clock at 12:30", []),
    (r"clock at 12\:30:0.5", "clock at 12:30", [0.5]),
    (r"this \| that", "this | that", []),
    (r"C\D", r"C\D", []),
    ("two\nlines:3", "two\nlines", [3.0]),
    ("my photo.JPG:0.5", Path("my photo.JPG"), [0.5]),
    (r"a\:1.png", Path("a:1.png"), []),
    ("a.png is a file", "a.png is a file", []),
    ("", "", []),
]


@pytest.mark.parametrize(("word", "content", "numbers"), TABLE, ids=[repr(row[0]) for row in TABLE])
def test_numbers_behind_colons_are_split_off(word, content, numbers):
    if numbers is None:
        with pytest.raises(UserError, match=r"^expected a number such as .* write \\: for a colon of the text$"):
            split_term(word, max_numbers=2)
        return
    assert split_term(word, max_numbers=2) == (content, numbers)


def test_at_most_max_numbers_are_split_off():
    assert split_term("a fox:1:2") == ("a fox:1", [2.0])
    assert split_term("a fox:1:2", max_numbers=0) == ("a fox:1:2", [])
