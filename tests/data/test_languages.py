"""Codes of languages, and captions whose file, line or field names one."""

import json

import pytest
from helpers.sources import encode, put, put_tar, read, reasons

from dalle_mini_impl.data.inspect import inspect_pairs, report_text
from dalle_mini_impl.data.languages import is_known_language, language_of_name
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.source_files import source_states


@pytest.mark.parametrize("code", ["de", "DE", "pt_BR", "zh-Hant", "ca@valencia", "yue", "fil"])
def test_codes_of_languages_are_known(code):
    assert is_known_language(code)


@pytest.mark.parametrize("code", ["", "xx", "big", "english", "d", "x-de", "001"])
def test_other_codes_are_not(code):
    assert not is_known_language(code)


@pytest.mark.parametrize(
    ("name", "divided"),
    [
        ("cat.de", ("cat", "de")),
        ("a/b.c/cat.pt-BR", ("a/b.c/cat", "pt-BR")),
        ("cat.xx", ("cat", "xx")),
        ("cat.big", ("cat.big", "")),
        ("cat.001", ("cat.001", "")),
        ("cat", ("cat", "")),
        (".de", (".de", "")),
        ("de", ("de", "")),
    ],
)
def test_language_of_a_name(name, divided):
    assert language_of_name(name) == divided


FILES = {
    "a.txt": "A duck.\nfr.utf8=Un canard.",
    "a.de.txt": "Eine Ente\nDie Ente",
    "a.pt_BR.txt": "Um pato",
    "a.pt_BR.caption": "not this",
}
CAPTIONS = (
    Caption("A duck"),
    Caption("Un canard", "fr"),
    Caption("Eine Ente", "de"),
    Caption("Die Ente", "de"),
    Caption("Um pato", "pt_BR"),
)


def test_files_of_several_languages_belong_to_one_picture(tmp_path):
    for name, text in {**FILES, "b.de.txt": "Ein Hund", "c.png.it.txt": "un gatto", "d.big.txt": "no"}.items():
        put(tmp_path, name, text)
    for name in ("a", "b", "c", "d", "e.de", "e"):
        put(tmp_path, f"{name}.png", encode())
    put(tmp_path, "e.de.txt", "of the picture e.de")
    put(
        tmp_path,
        "e.json",
        json.dumps({"captions": [{"text": "an egg", "language": "en"}, {"text": "un œuf", "language": "fr"}]}),
    )
    put(tmp_path, "e.nl.txt", "een ei")
    pairs, log = read(tmp_path)
    captions = {pair.key: pair.captions for pair in pairs}
    assert captions == {
        "a": CAPTIONS,
        "b": (Caption("Ein Hund", "de"),),
        "c": (Caption("un gatto", "it"),),
        "e": (Caption("een ei", "nl"), Caption("an egg", "en"), Caption("un œuf", "fr")),
        "e.de": (Caption("of the picture e.de"),),
    }
    assert reasons(log) == {"d.png": "no caption", "d.big.txt": "no picture"}


def test_members_of_tars_name_languages_too(tmp_path):
    members = [("a.png", encode()), *FILES.items(), ("b.png", encode()), ("b.de.txt", "Ein Hund")]
    put_tar(tmp_path / "set.tar", members)
    pairs, log = read(tmp_path)
    assert {pair.key: pair.captions for pair in pairs} == {"a": CAPTIONS, "b": (Caption("Ein Hund", "de"),)}
    assert not log.entries


def test_inspection_tells_of_unknown_languages(tmp_path):
    put(tmp_path, "a.png", encode())
    put(tmp_path, "a.txt", "A duck.")
    put(tmp_path, "a.xx.txt", "?a duck")
    put(tmp_path, "a.de.txt", "Eine Ente")
    report, _ = inspect_pairs(read(tmp_path)[0])
    assert report.languages == {"unknown": 1, "de": 1, "xx": 1}
    assert report.unknown_languages == ["xx"]
    assert "languages that are not known: xx" in report_text(report)


# --- tables inside a folder, as image folders of Hugging Face have them


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_captions_come_from_a_table_inside_the_folder(tmp_path, ending):
    rows = [
        ("a.png", "a duck"),
        ("sub/b.png", "a dog"),
        ("sub/b.png", "the dog"),
        ("c.png", "not this"),
        ("gone.png", "x"),
    ]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    if ending == "csv":
        lines = ["file_name,text", *(",".join(row) for row in rows)]
    put(tmp_path, f"train/metadata.{ending}", "\n".join(lines))
    for name in ("a", "sub/b", "c", "d"):
        put(tmp_path, f"train/{name}.png", encode())
    put(tmp_path, "train/c.txt", "its own")
    pairs, log = read(tmp_path)
    texts = {pair.key: [caption.text for caption in pair.captions] for pair in pairs}
    assert texts == {"train/a": ["a duck"], "train/sub/b": ["a dog", "the dog"], "train/c": ["its own"]}
    assert sorted(reason.split(":")[0] for _, reason in log.entries) == ["no caption", "no picture"]
    assert f"train/metadata.{ending}" in source_states(str(tmp_path))


def test_other_tables_inside_a_folder_are_told_and_do_no_harm(tmp_path):
    put(tmp_path, "metadata.csv", "weight;price\n1;2\n")
    put(tmp_path, "sub/metadata.jsonl", '{"file_name": "../../a.png", "text": "outside"}\nno JSON\n')
    put(tmp_path, "a.png", encode())
    put(tmp_path, "a.txt", "a duck")
    pairs, log = read(tmp_path)
    assert [pair.key for pair in pairs] == ["a"]
    assert sorted(reason.split(":")[0] for _, reason in log.entries) == [
        "malformed line",
        "no picture",
        "unusable table",
    ]
