"""Text that is safe to print, and text files in several encodings."""

import json

import pytest

from dalle_mini_impl.util.text import decode_text, escape_controls, printable, split_lines

CAPTION = "eine Ente 🦆\nune canard"


def test_names_are_printed_in_one_line_without_control_characters():
    assert printable("a\x1b[31m\tb\n\x07c\x7f\x9b\udcff") == "a\\u001b[31m b \\u0007c\\u007f\\u009b\\udcff"
    assert printable("invoice\u202egnp.exe") == "invoice\\u202egnp.exe"
    assert printable("⭐️ 👨‍👩‍👧 قلب naïve") == "⭐️ 👨‍👩‍👧 قلب naïve"


def test_escapes_keep_lines_and_mean_the_same_in_json():
    text = "a\tb\r\nc\rd\x1b[2J\x9b"
    assert escape_controls(text) == "a\tb\r\nc\\u000dd\\u001b[2J\\u009b"
    value = {"text": "\x9b2J \x7f \u202e"}
    assert json.loads(escape_controls(json.dumps(value, ensure_ascii=False))) == value


def test_only_line_ends_split_lines():
    assert split_lines("a\nb\r\nc\rd\n") == ["a", "b", "c", "d"]
    assert split_lines("a\n\nb") == ["a", "", "b"]
    assert split_lines("") == []
    for character in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        assert split_lines(f"a{character}b") == [f"a{character}b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_and_without_byte_order_mark_is_decoded(encoding):
    assert decode_text(CAPTION.encode(encoding)) == CAPTION


def test_big_endian_text_with_byte_order_mark_is_decoded():
    assert decode_text(b"\xfe\xff" + CAPTION.encode("utf-16-be")) == CAPTION


@pytest.mark.parametrize(
    "content", ["grün".encode("latin-1"), "a cat".encode("utf-16-le"), "a cat".encode("utf-16-be"), b"\xff\xfea", b"\0"]
)
def test_text_in_another_encoding_is_refused(content):
    with pytest.raises(ValueError, match=r"byte|NUL"):
        decode_text(content)
