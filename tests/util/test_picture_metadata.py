"""The text that other programs show, and XMP packets."""

import json

import pytest
from helpers.infotext import parse_infotext
from hypothesis import given
from hypothesis import strategies as st

from dalle_mini_impl.util.picture_metadata import (
    MAX_SEGMENT,
    MAX_TEXT,
    XMP_NAMESPACE,
    infotext,
    jpeg_segments,
    read_xmp_record,
    xmp_packet,
    xmp_packets,
    xmp_record,
)

SETTINGS = {"Steps": 64, "Sampler": "autoregressive", "CFG scale": 1.5, "Seed": 7, "Size": "64x48"}


def test_the_text_has_the_form_that_programs_look_for():
    text = infotext(["a red heart"], ["blue"], {**SETTINGS, "Model hash": None, "Model": "emoji"})
    assert text == (
        "a red heart\nNegative prompt: blue\n"
        "Steps: 64, Sampler: autoregressive, CFG scale: 1.5, Seed: 7, Size: 64x48, Model: emoji"
    )
    assert infotext([""], [""], SETTINGS).startswith("Steps: 64, ")


def test_prompts_of_a_grid_stand_below_each_other_once():
    values = parse_infotext(infotext(["a cat", "心形", "a cat"], ["", "red"], SETTINGS))
    assert values["Prompt"] == "a cat\n心形"
    assert values["Negative prompt"] == "red"


@given(st.text(), st.text(), st.text(min_size=1))
def test_any_texts_are_read_back_in_one_line_each(prompt, negative, model):
    text = infotext([prompt], [negative], {**SETTINGS, "Model": model, "Temperature": 0.5})
    values = parse_infotext(text)
    assert values["Temperature"] == "0.5"
    assert values["Seed"] == "7"
    assert text.count("\n") <= 2
    assert text.isprintable() or all(ord(character) > 31 or character == "\n" for character in text)


@pytest.mark.parametrize("model", ["runs/mine, the second", 'a "b"', "C:\\models", "hf:me/hearts", "plain"])
def test_values_that_would_end_too_early_are_quoted(model):
    assert parse_infotext(infotext(["a cat"], [], {**SETTINGS, "Model": model}))["Model"] == model


def test_endless_prompts_are_cut_and_leave_the_settings():
    text = infotext(["🦄" * 100_000], ["x" * 100_000], SETTINGS)
    values = parse_infotext(text)
    assert len(values["Prompt"]) == MAX_TEXT // 2  # of which two units each are half, and the sign that it is cut
    assert len(values["Negative prompt"]) == MAX_TEXT
    assert values["Size"] == "64x48"


# --- XMP


@given(st.text())
def test_records_are_read_back_from_xmp(text):
    record = json.dumps({"prompt": text}, ensure_ascii=False)
    read = read_xmp_record([xmp_record(record.encode("utf-8", "replace").decode())])
    assert read is not None
    assert json.loads(read)["prompt"] == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("length", [0, MAX_SEGMENT - 500, MAX_SEGMENT, 5 * MAX_SEGMENT + 1])
def test_records_of_any_length_fit_into_jpeg_segments(length):
    record = json.dumps("ä" * length, ensure_ascii=False)
    rest, segments = jpeg_segments(xmp_record(record)), []
    while rest:
        size = int.from_bytes(rest[2:4])
        segments.append(("APP1", rest[4 : 2 + size]))
        rest = rest[2 + size :]
    assert read_xmp_record(xmp_packets(segments)) == record
    assert read_xmp_record(xmp_packets(segments[::-1])) == record


def test_a_property_that_another_program_made_an_attribute_is_read():
    packet = xmp_packet("").replace(b'rdf:about=""', f'd:metadata="[3]" xmlns:d="{XMP_NAMESPACE}"'.encode())
    assert read_xmp_record([packet]) == "[3]"


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff\xfe",
        b"<a>",
        xmp_packet("<a/>"),
        b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + xmp_record("[3]"),
        b"<a>" * 100_000,
        xmp_record("[3]").decode().encode("utf-16"),
    ],
)
def test_other_packets_are_passed_over(packet):
    assert read_xmp_record([packet]) is None
    assert read_xmp_record([packet, xmp_record("[4]")]) == "[4]"
