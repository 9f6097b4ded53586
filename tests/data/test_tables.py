"""Reading tables: quotes, delimiters, encodings, line ends and names of columns."""

import json
import time

import pytest
from helpers.sources import encode, put, read, texts

from dalle_mini_impl.data import tables
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        put(tmp_path, f"p{number}.png", encode())
    return tmp_path


def captions_of(table):
    """Captions by picture, and the numbers of the lines that were skipped."""
    pairs, log = read(table)
    skipped = sorted(int(name.rsplit(":", 1)[1].split(" ")[0]) for name, _ in log.entries)
    return {pair.key: texts(pair) for pair in pairs}, skipped


# --- quotes


def test_tsv_has_no_quoting(folder):
    table = put(folder, "list.tsv", 'path\tcaption\np0.png\t"big cat\np1.png\ta dog\np2.png\ta bird"\np3.png\tlast\n')
    captions, skipped = captions_of(table)
    assert captions == {"p0.png": ['"big cat'], "p1.png": ["a dog"], "p2.png": ["a bird"], "p3.png": ["last"]}
    assert not skipped


def test_quotes_that_spreadsheets_put_around_quotes_in_a_tsv_are_removed(folder):
    captions, _ = captions_of(put(folder, "list.tsv", 'path\tcaption\np0.png\t"say ""red"""\np1.png\t""""\n'))
    assert captions == {"p0.png": ['say "red"'], "p1.png": ['"']}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("columns", [("path", "caption"), ("caption", "path")])
def test_open_quote_costs_its_own_row_only(folder, delimiter, columns):
    rows = [columns, ("p0.png", '"big cat'), ("p1.png", "a dog"), ("p2.png", 'a bird"'), ("p3.png", "last")]
    if columns[0] == "caption":
        rows[1:] = [(caption, path) for path, caption in rows[1:]]
    captions, skipped = captions_of(put(folder, "list.csv", "\n".join(map(delimiter.join, rows))))
    assert captions == {"p1.png": ["a dog"], "p2.png": ["a bird"], "p3.png": ["last"]}
    assert skipped == [2]


def test_open_quote_to_the_end_of_the_table_costs_its_own_row_only(folder):
    captions, skipped = captions_of(put(folder, "list.csv", 'path,caption\np0.png,"big cat\np1.png,a dog\np2.png,b\n'))
    assert captions == {"p1.png": ["a dog"], "p2.png": ["b"]}
    assert skipped == [2]


def test_open_quotes_before_pictures_without_ending_are_found_by_their_files(folder):
    (folder / "p1.png").rename(folder / "one")
    captions, skipped = captions_of(put(folder, "list.csv", 'path,caption\np0.png,"big cat\none,a dog"\np2.png,b\n'))
    assert captions == {"one": ["a dog"], "p2.png": ["b"]}
    assert skipped == [2]


def test_caption_over_several_lines_is_kept(folder):
    table = put(folder, "list.csv", 'path,caption\np0.png,"A cat, red\non a mat, blue,\n\nasleep"\np1.png,a dog\n')
    captions, skipped = captions_of(table)
    assert captions == {"p0.png": ["A cat, red on a mat, blue, asleep"], "p1.png": ["a dog"]}
    assert not skipped


def test_every_line_of_a_quote_that_ends_too_late_is_counted(folder):
    lines = "\n".join(f"line {number}" for number in range(tables.MAX_FIELD_LINES + 3))
    captions, skipped = captions_of(put(folder, "list.csv", f'path,caption\np0.png,"{lines}"\np1.png,a dog\n'))
    assert captions == {"p1.png": ["a dog"]}
    assert skipped == list(range(2, tables.MAX_FIELD_LINES + 5))


def test_many_open_quotes_take_time_in_proportion_to_the_table(folder):
    lines = [f'x{number}"' if number % 2 else f'x{number},"' for number in range(20_000)]
    table = put(folder, "list.csv", "\n".join(["path,caption", *lines, "p0.png,red"]))
    start = time.process_time()
    captions, _ = captions_of(table)
    assert captions == {"p0.png": ["red"]}
    assert time.process_time() - start < 10  # reading all that follows for each of them takes minutes


# --- delimiters, encodings and line ends


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("list.csv", ["path,caption", "p0.png,größer", 'p1.png,"a, b"']),
        ("list.csv", ["sep=;", "path;caption", "p0.png;größer", "p1.png;a, b"]),
        ("list.csv", ["path\tcaption", "p0.png\tgrößer", "p1.png\ta, b"]),
        ("list.tsv", ["caption\tpath", "größer\tp0.png", "a, b\tp1.png"]),
        ("list.jsonl", ['{"path": "p0.png", "caption": "größer"}', '{"path": "p1.png", "caption": "a, b"}']),
    ],
)
def test_every_encoding_delimiter_and_line_end_is_read(folder, name, rows, encoding, end):
    captions, skipped = captions_of(put(folder, name, end.join(rows).encode(encoding)))
    assert captions == {"p0.png": ["größer"], "p1.png": ["a, b"]}
    assert not skipped


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_other_separators_of_unicode_do_not_end_a_row(folder, name, character):
    delimiter = "," if name == "list.csv" else "\t"
    table = put(folder, name, f"path{delimiter}caption\np0.png{delimiter}red{character}heart\n")
    assert captions_of(table) == ({"p0.png": ["red heart"]}, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,caption\np0.png,red\n".encode("utf-16-le"), "save it as UTF-8"),
        (b"url,caption\nhttp://a/b.png,red\n", "has addresses in its columns .*download them"),
        (b"URL,TEXT,similarity\nhttp://a/b.png,red,1\n", "has addresses in its columns .*download them"),
        (b"id,words\n1,red\n", "starts with the columns id, words; expected .* filepath"),
    ],
)
def test_table_of_another_kind_is_refused_in_one_line(folder, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_pairs(put(folder, "list.csv", content), SkipLog())
    assert "\n" not in str(error.value)


def test_endless_lines_cost_their_own_row(folder, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 60)
    rows = ["path,caption", "p0.png,red", f"p1.png,{'x' * 300}", f'p2.png,"{"y" * 300}', "p3.png,blue"]
    assert captions_of(put(folder, "list.csv", "\n".join(rows))) == ({"p0.png": ["red"], "p3.png": ["blue"]}, [3, 4])


def test_tables_over_the_limit_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 20)
    with pytest.raises(UserError, match="at most 20 bytes, got 24"):
        read_pairs(put(folder, "list.csv", "path,caption\np0.png,red\n"), SkipLog())


# --- columns


@pytest.mark.parametrize("path", ["filepath", "FileName", "Image Path", "image-name", "file", "IMG"])
@pytest.mark.parametrize("caption", ["title", "Text", "CAPTION", "prompt"])
def test_columns_by_other_names_are_found(folder, path, caption):
    captions, _ = captions_of(put(folder, "list.csv", f"id,{caption},{path}\n7,red,p0.png\n"))
    assert captions == {"p0.png": ["red"]}


def test_fields_of_json_by_other_names_are_found(folder):
    (pair,), _ = read(put(folder, "list.jsonl", '{"FilePath": "p0.png", "TITLE": "red", "file": "p0", "n": NaN}'))
    assert (pair.key, texts(pair), pair.details) == ("p0.png", ["red"], {"file": "p0", "n": None})


def test_captions_of_several_columns_of_one_name_are_joined(folder):
    captions, _ = captions_of(put(folder, "list.csv", "path,caption,caption\np0.png,red,rot\np1.png,,blau\n"))
    assert captions == {"p0.png": ["red", "rot"], "p1.png": ["blau"]}


def test_rows_with_addresses_are_skipped_with_what_to_do(folder):
    rows = ['{"url": "http://a/b.png", "caption": "red"}', '{"path": "https://a/b.png", "caption": "red"}']
    pairs, log = read(put(folder, "list.jsonl", "\n".join(rows)))
    assert not pairs
    assert all("download them" in reason for _, reason in log.entries)


@pytest.mark.parametrize("number", ["9" * 5000, "[" * 100_000, "1e999999"])
def test_json_bombs_cost_their_own_row(folder, number):
    rows = [f'{{"path": "p0.png", "caption": {number}}}', '{"path": "p1.png", "caption": "blue"}']
    assert captions_of(put(folder, "list.jsonl", "\n".join(rows))) == ({"p1.png": ["blue"]}, [1])


@pytest.mark.parametrize(
    ("header", "row", "captions"),
    [
        ("filepath,title", "p0.png,red", [("red", "")]),
        ("FILENAME,TEXT", "p0.png,red", [("red", "")]),
        ("file,description", "p0.png,red", [("red", "")]),
        ("image_path,caption_en,caption_de", "p0.png,red,rot", [("red", "en"), ("rot", "de")]),
        ("path,caption,caption_de,title", "p0.png,red,rot,IMG", [("red", "")]),
        ("path,caption_id,text", "p0.png,17,red", [("red", "")]),
        ("path,caption_id,title", "p0.png,17,red", [("red", "")]),
        ("path,caption,language", "p0.png,rot,de", [("rot", "de")]),
        ("sep=,\npath,caption", "p0.png,red", [("red", "")]),
    ],
)
def test_columns_of_other_programs_are_known(tmp_path, header, row, captions):
    put(tmp_path, "p0.png", encode())
    (pair,), _ = read(put(tmp_path, "list.csv", f"{header}\n{row}\n"))
    assert [(caption.text, caption.language) for caption in pair.captions] == captions
    if not header.startswith("sep"):
        line = json.dumps(dict(zip(header.split(","), row.split(","), strict=True)))
        (pair,), _ = read(put(tmp_path, "list.jsonl", line))
        assert [(caption.text, caption.language) for caption in pair.captions] == captions


def test_hostile_rows_cost_only_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.data.tables.MAX_LINE_CHARACTERS", 20_000)
    for name in ("p0.png", "p1.png"):
        put(tmp_path, name, encode())
    lines = [
        '{"path": "p0.png", "caption": "red\\u0000\\u001b[2J", "n": 1e999}',
        '{"path": "p1.png", "caption": "red", "n": ' + "9" * 5000 + "}",
        '{"path": "p1.png", "caption": "red", "n": ' + "[" * 400 + "]" * 400 + "}",
        '{"path": "p1.png", "caption": ' + "[" * 400 + '"red"' + "]" * 400 + "}",
        '{"path": "p1.png", "caption": "' + "red " * 10_000 + '"}',
        '{"path": "p0.png", "caption": ["blue", 5, null, NaN]}',
    ]
    pairs, log = read(put(tmp_path, "list.jsonl", "\n".join(lines)))
    assert [(pair.key, texts(pair)) for pair in pairs] == [("p0.png", ["red [2J", "blue"])]
    assert len(log.entries) == 4
    assert [reason.split(":")[0] for _, reason in log.notes] == ["malformed caption"]
    assert "left out in part 1: 1 malformed caption" in log.report()
