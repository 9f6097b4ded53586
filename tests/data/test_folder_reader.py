"""Folders of pictures: formats, caption files by their names, and files that are none."""

import os

import pytest
from helpers.sources import SIZE, encode, put, put_tar, read, reasons, texts

from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.util.errors import UserError

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="20" height="10" fill="lime"/></svg>'
)


def test_drawings_are_pictures_and_stand_back_behind_others(tmp_path):
    pytest.importorskip("resvg_py")
    for name in ("a.svg", "b.svg", "b.webp", "c.SVG", "d.svg"):
        put(tmp_path, name, encode(kind="WEBP") if name.endswith("webp") else DRAWING)
        put(tmp_path, f"{name[0]}.txt", name[0])
    put(tmp_path, "d.svg", DRAWING[:-3])
    pairs, log = read(tmp_path)
    assert [(pair.key, pair.image.size) for pair in pairs] == [("a", (512, 256)), ("b", SIZE), ("c", (512, 256))]
    assert reasons(log) == {"b.svg": "same name", "d.svg": "broken picture"}
    put_tar(tmp_path / "a.tar", [("b.svg", DRAWING), ("b.webp", encode(kind="WEBP")), ("b.txt", "b")])
    assert [pair.image.size for pair in read(tmp_path / "a.tar")[0]] == [SIZE]


def test_drawings_are_counted_where_their_library_is_missing(tmp_path, without_svg):
    put(tmp_path, "a.svg", DRAWING)
    put(tmp_path, "a.txt", "a drawing")
    put(tmp_path, "c.png", encode())
    put(tmp_path, "c.svg", DRAWING)
    put(tmp_path, "c.txt", "both")
    pairs, log = read(tmp_path)
    assert [pair.key for pair in pairs] == ["c"]
    assert reasons(log) == {"a.svg": "unreadable format", "c.svg": "same name"}
    assert "pip install resvg-py" in dict(log.entries)[str(tmp_path / "a.svg")]


def test_pictures_of_other_formats_are_counted_by_what_they_are(tmp_path):
    put(tmp_path, "a.psd", "x")
    put(tmp_path, "a.txt", "a drawing")
    put(tmp_path, "b.JXL", b"x")
    put(tmp_path, "c.png", encode())
    put(tmp_path, "c.psd", "x")
    put(tmp_path, "c.txt", "both")
    pairs, log = read(tmp_path)
    assert [pair.key for pair in pairs] == ["c"]
    assert reasons(log) == {"a.psd": "unreadable format", "b.JXL": "unreadable format", "c.psd": "same name"}


def test_folder_of_unreadable_formats_only_is_no_empty_folder(tmp_path):
    put(tmp_path, "a.psd", "x")
    pairs, log = read(tmp_path)
    assert not pairs
    assert reasons(log) == {"a.psd": "unreadable format"}


def test_translated_lines_are_captions_in_their_language(tmp_path):
    put(tmp_path, "a.png", encode())
    put(tmp_path, "a.txt", "A duck\nde.utf8=Eine Ente\npt_BR.utf8=Um pato\nca@valencia.utf8=\nx = y\n")
    (pair,), _ = read(tmp_path)
    assert pair.captions == (
        Caption("A duck"),
        Caption("Eine Ente", "de"),
        Caption("Um pato", "pt_BR"),
        Caption("x = y"),
    )


def test_caption_files_of_other_programs_are_found(tmp_path):
    for name, files in (
        ("a", {"a.caption": "one"}),
        ("b", {"b.cap": "two"}),
        ("c", {"c.png.txt": "three"}),
        ("d", {"d.json": '{"caption": "four"}'}),
        ("IMG.001", {"IMG.001.txt": "five", "IMG.001.caption": "not this"}),
        ("e", {"e.txt": "six", "e.json": '{"caption": "not this"}', "e.png.txt": "nor this"}),
    ):
        put(tmp_path, f"{name}.png", encode())
        for file, content in files.items():
            put(tmp_path, file, content)
    pairs, log = read(tmp_path)
    assert {pair.key: texts(pair) for pair in pairs} == {
        "IMG.001": ["five"], "a": ["one"], "b": ["two"], "c": ["three"], "d": ["four"], "e": ["six"],
    }  # fmt: skip
    assert reasons(log) == {"e.png.txt": "no picture"}


@pytest.mark.parametrize("character", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
def test_only_line_ends_divide_captions(tmp_path, character):
    put(tmp_path, "a.png", encode())
    put(tmp_path, "a.txt", f"a red{character}heart\rsecond\r\nthird")
    (pair,), _ = read(tmp_path)
    assert texts(pair) == ["a red heart", "second", "third"]


def test_captions_in_utf16_are_decoded_or_refused(tmp_path):
    for name, content in (
        ("bom", "ein Öl".encode("utf-16")),
        ("le", "an oil".encode("utf-16-le")),
        ("be", "an oil".encode("utf-16-be")),
    ):
        put(tmp_path, f"{name}.png", encode())
        put(tmp_path, f"{name}.txt", content)
    pairs, log = read(tmp_path)
    assert {pair.key: texts(pair) for pair in pairs} == {"bom": ["ein Öl"]}
    assert reasons(log) == {"be.png": "caption not UTF-8", "le.png": "caption not UTF-8"}


def test_pipes_devices_and_huge_files_are_skipped_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for name in ("x", "zero", "sparse"):
        put(tmp_path, f"{name}.txt", "red")
    put(tmp_path, "endless.png", encode())
    put(tmp_path, "fine.png", encode())
    put(tmp_path, "fine.txt", "red")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(10**12)
    pairs, log = read(tmp_path)
    assert [pair.key for pair in pairs] == ["fine"]
    assert set(reasons(log).values()) == {"unreadable file"}
    assert len(log.entries) == 4
    for name in ("x.tar", "x.jsonl", "x.csv"):
        os.mkfifo(tmp_path / name)
    pairs, log = read(tmp_path / "x.tar")
    assert log.entries[0][1] == f"unreadable tar: expected {tmp_path}/x.tar to be a file, got a pipe; name a file"
    for name in ("x.jsonl", "x.csv"):
        with pytest.raises(UserError, match="got a pipe"):
            read(tmp_path / name)
