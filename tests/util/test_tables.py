"""Tables of text cells."""

import pytest

from dalle_mini_impl.util.tables import aligned_table, markdown_table


def test_markdown_columns_are_as_wide_as_their_widest_cell():
    rows = [{"name": "a", "pairs": "1000000"}, {"name": "longer", "pairs": "7"}]
    assert markdown_table(rows).splitlines() == [
        "| name   | pairs   |",
        "| ------ | ------- |",
        "| a      | 1000000 |",
        "| longer | 7       |",
    ]


def test_columns_are_left_aligned_without_trailing_spaces():
    rows = [("row", "value", ""), ("sampling", "1", "note"), ("x", "22", "")]
    assert aligned_table(rows) == "row       value\nsampling  1      note\nx         22"


def test_columns_named_in_right_are_right_aligned():
    rows = [("", "nats", "seconds"), ("fp16", "0.5", "12.25"), ("a", "10.5", "2.25")]
    assert aligned_table(rows, right=(1, 2)).splitlines() == [
        "      nats  seconds",
        "fp16   0.5    12.25",
        "a     10.5     2.25",
    ]


def test_minimum_widths_line_up_several_tables():
    first = aligned_table([("a", "1")], right=(1,), min_widths=(4, 3), gap=1)
    second = aligned_table([("abcd", "222")], right=(1,), min_widths=(4,), gap=1)
    assert first == "a      1"
    assert second == "abcd 222"
    assert aligned_table([("abcdef", "1")], min_widths=(4,)) == "abcdef  1"


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="argument"):
        aligned_table([("a", "b"), ("c",)])
