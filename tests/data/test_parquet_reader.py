"""Parquet files with pictures in them, as data sets of Hugging Face and img2dataset have them, and tables of paths."""

import datetime
import itertools
import json

import pytest
from helpers.sources import encode, put, put_tar, read, reasons, texts

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data import parquet_reader
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.picture_store import build_store, open_store
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.source_files import source_states
from dalle_mini_impl.train.whole.pictures import look_at
from dalle_mini_impl.util.errors import UserError

COLOURS = ("red", "lime", "blue", "white", "black")


@pytest.fixture
def write():
    """Write a Parquet file of rows, with small row groups."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(path, rows, row_group_size=2):
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
        return path

    return write


def hugging_face(colour, **fields):
    return {"image": {"bytes": encode(colour), "path": f"{colour}.png"}, **fields}


def test_a_repository_of_hugging_face(tmp_path, write):
    put(tmp_path, "README.md", "# a set")
    put(tmp_path, "assets/banner.png", encode())
    rows = [hugging_face(colour, text=f"a {colour} square", label=number) for number, colour in enumerate(COLOURS)]
    write(tmp_path / "data/train-00000-of-00002.parquet", rows[:2])
    write(tmp_path / "data/train-00001-of-00002.parquet", rows[2:4])
    write(tmp_path / "data/validation-00000-of-00001.parquet", rows[4:])
    pairs, log = read(tmp_path)
    assert [(pair.key, texts(pair), pair.split, pair.details) for pair in pairs] == [
        (f"{name}:{number}", [f"a {colour} square"], split, {"label": label})
        for label, (colour, name, number, split) in enumerate([
            ("red", "train-00000-of-00002", 0, "train"),
            ("lime", "train-00000-of-00002", 1, "train"),
            ("blue", "train-00001-of-00002", 0, "train"),
            ("white", "train-00001-of-00002", 1, "train"),
            ("black", "validation-00000-of-00001", 0, "validation"),
        ])
    ]  # fmt: skip
    assert pairs[0].image.getpixel((3, 2)) == (255, 0, 0)
    assert not log.entries
    assert read(f"{tmp_path}/data/train-*.parquet")[0][3].key == pairs[3].key
    assert [pair.key for pair in read(tmp_path / "data/validation-00000-of-00001.parquet")[0]] == [pairs[4].key]


def test_every_kind_of_caption_and_value(tmp_path, write):
    write(tmp_path / "a.parquet", [
        hugging_face("red", captions=["one", "two"], sentences=["three"], when=datetime.date(2020, 1, 2), score=0.5),
        hugging_face("lime", captions=["four"], sentences=None, when=None, score=float("nan")),
    ])  # fmt: skip
    pairs, log = read(tmp_path / "a.parquet")
    assert [texts(pair) for pair in pairs] == [["one", "two"], ["four"]]
    assert pairs[0].details == {"sentences": ["three"], "when": "2020-01-02", "score": 0.5}
    assert pairs[1].details["score"] is None
    assert not log.entries
    json.dumps(pairs[1].details, allow_nan=False)


def test_rows_that_cannot_be_used_are_listed_and_the_others_read(tmp_path, write):
    put(tmp_path, "beside.png", encode("blue"))
    write(tmp_path / "a.parquet", [
        hugging_face("red", text="red"),
        hugging_face("lime", text=""),
        {"image": {"bytes": b"no picture", "path": None}, "text": "x"},
        {"image": {"bytes": None, "path": "beside.png"}, "text": "blue"},
        {"image": {"bytes": None, "path": "missing.png"}, "text": "x"},
        {"image": None, "text": "x"},
    ])  # fmt: skip
    pairs, log = read(tmp_path / "a.parquet")
    assert [texts(pair) for pair in pairs] == [["red"], ["blue"]]
    assert reasons(log) == {"1": "empty caption", "2": "not a picture", "4": "missing file", "5": "no picture"}
    assert [pair.captions for pair in read(tmp_path / "a.parquet", captions="optional")[0]][1] == ()


def test_output_of_img2dataset(tmp_path, write):
    def row(key, jpg, status, error=None):
        return {
            "caption": f"caption {key}", "url": "https://host/a.jpg", "key": key, "status": status,
            "error_message": error, "width": 13, "jpg": jpg, "txt": f"caption {key}",
        }  # fmt: skip

    write(tmp_path / "00000.parquet", [
        row("000000000", encode("red", "JPEG"), "success"),
        row("000000001", None, "failed_to_download", "HTTP Error 404: Not Found"),
        row("000000002", None, "failed_to_resize", "Image decoding error"),
        row("000000003", encode("blue", "JPEG"), "success"),
    ])  # fmt: skip
    pairs, log = read(tmp_path)
    assert [(pair.key, texts(pair)) for pair in pairs] == [
        ("000000000", ["caption 000000000"]),
        ("000000003", ["caption 000000003"]),
    ]
    assert log.entries[0][1] == "failed to download: HTTP Error 404: Not Found"
    assert log.report().startswith("skipped 2: 1 failed to download, 1 failed to resize")


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_divide_the_rows(tmp_path, write, workers):
    for number in range(3):
        rows = [hugging_face(colour, text=f"{colour} {number}") for colour in COLOURS]
        write(tmp_path / f"{number}.parquet", rows)
    whole = [texts(pair) for pair in read(tmp_path)[0]]
    parts = [[texts(pair) for pair in read(tmp_path, worker=worker, workers=workers)[0]] for worker in range(workers)]
    assert sorted(itertools.chain(*parts)) == sorted(whole)
    assert len(whole) == 15
    assert all(parts)


def test_a_damaged_file_is_listed_and_the_others_are_read(tmp_path, write):
    for number, colour in enumerate(COLOURS[:3]):
        write(tmp_path / f"{number}.parquet", [hugging_face(colour, text=colour)] * 6)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-30])
    pairs, log = read(tmp_path)
    assert [texts(pair)[0] for pair in pairs] == ["red"] * 6 + ["blue"] * 6
    assert reasons(log) == {"1.parquet": "damaged Parquet file"}


def test_a_single_damaged_file_is_refused_in_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=r"a\.parquet to be a Parquet file, got one that is damaged: .*; write it anew"):
        read_pairs(put(tmp_path, "a.parquet", b"PAR1 and nothing"), SkipLog())


def test_a_table_of_paths(tmp_path, write):
    put(tmp_path, "deep/a.png", encode())
    table = write(tmp_path / "rows.parquet", [
        {"file_name": "deep/a.png", "text": "one", "score": 0.5},
        {"file_name": "deep/a.png", "text": "two", "score": 0.5},
        {"file_name": "b.png", "text": "three", "score": 0.5},
    ])  # fmt: skip
    pairs, log = read(table)
    assert [(pair.key, texts(pair), pair.details) for pair in pairs] == [("deep/a.png", ["one", "two"], {"score": 0.5})]
    assert len(log.entries) == 1
    assert list(source_states(str(table))) == ["rows.parquet", "deep/a.png", "b.png"]


def test_metadata_of_a_folder(tmp_path, write):
    put(tmp_path, "train/a.png", encode())
    put(tmp_path, "train/b.png", encode())
    write(tmp_path / "train/metadata.parquet", [{"file_name": "a.png", "text": "one"}])
    pairs, log = read(tmp_path)
    assert [(pair.key, texts(pair)) for pair in pairs] == [("train/a", ["one"])]
    assert reasons(log) == {"b.png": "no caption"}
    assert sorted(source_states(str(tmp_path))) == ["train/a.png", "train/b.png", "train/metadata.parquet"]


def test_addresses_without_pictures_are_refused_with_advice(tmp_path, write):
    table = write(tmp_path / "laion.parquet", [{"URL": "https://host/a.jpg", "TEXT": "red"}])
    assert (
        read(table)[1].entries[0][1].startswith("not local: an address and no path; pictures must be local; download")
    )


def test_without_the_extra_parquet_is_refused_and_pictures_beside_it_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader.importlib.util, "find_spec", lambda name: None)
    put(tmp_path, "a/00000.parquet", b"")
    for source in (tmp_path / "a", tmp_path / "a/00000.parquet", f"{tmp_path}/a/*.parquet"):
        with pytest.raises(UserError, match=r"pyarrow is not installed; run: pip install pyarrow .*\[parquet\]"):
            list(read_pairs(source, SkipLog()))
    put(tmp_path, "a/00000/0.jpg", encode("red", "JPEG"))
    put(tmp_path, "a/00000/0.txt", "red")
    assert [pair.key for pair in read(tmp_path / "a")[0]] == ["00000/0"]


def test_store_and_first_look(tmp_path, write, capsys):
    for number, colour in enumerate(COLOURS):
        write(tmp_path / f"set/{number}.parquet", [hugging_face(colour, text=f"{colour} {n}") for n in range(8)])
    look = look_at(str(tmp_path / "set"), 16)
    assert (look.total, look.count) == (40, 16)
    config = DataConfig(source=str(tmp_path / "set"), store=str(tmp_path / "store"), validation=0.2)
    build_store(config)
    assert len(open_store(config, "train")) + len(open_store(config, "validation")) == 40
    put_tar(tmp_path / "set/a.tar", [("a.png", encode()), ("a.txt", "red")])
    with pytest.raises(UserError, match="got 1 added"):
        open_store(config, "train")


def test_parquet_at_an_address(tmp_path, write):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        content = write(tmp_path / "a.parquet", [hugging_face(colour, text=colour) for colour in COLOURS]).read_bytes()
        memory.pipe({"/set/data/train-0.parquet": content, "/set/data/train-1.parquet": content[:-20]})
        for source in ("memory://set", "memory://set/data/*.parquet", "memory://set/data/train-{0,1}.parquet"):
            pairs, log = read(source)
            assert [texts(pair)[0] for pair in pairs] == [*COLOURS]
            assert reasons(log) == {"train-1.parquet": "damaged Parquet file"}
        assert look_at("memory://set/data/train-0.parquet", 10).total == 5
    finally:
        memory.store.clear()
