"""What img2dataset writes: tars or folders of pictures, captions in two files each, and figures beside them."""

import json

import pytest
from helpers.sources import encode, put, put_tar, read, texts

FIGURES = {
    "count": 10,
    "successes": 3,
    "failed_to_download": 5,
    "failed_to_resize": 2,
    "duration": 1.5,
    "status_dict": {},
}


def sample(key, caption, **fields):
    """Members of one picture, as its writer of WebDataset lays them out."""
    values = {"caption": caption, "url": "https://host/a.jpg", "key": key, "status": "success", "error_message": None}
    return [
        (f"{key}.jpg", encode("red", "JPEG")),
        (f"{key}.txt", caption or ""),
        (f"{key}.json", json.dumps({**values, **fields}, indent=4)),
    ]


def test_tars_with_their_parquet_files_and_figures(tmp_path):
    put_tar(tmp_path / "00000.tar", sample("000000000", "a cat", width=256) + sample("000000003", "a dog\nthat barks"))
    put_tar(tmp_path / "00001.tar", sample("000010000", "a cow") + sample("000010001", None))
    for number in (0, 1):
        put(tmp_path, f"0000{number}.parquet", b"metadata only: never opened")
    put(tmp_path, "00000_stats.json", json.dumps(FIGURES))
    pairs, log = read(tmp_path)
    assert [(pair.key, texts(pair)) for pair in pairs] == [
        ("000000000", ["a cat"]),
        ("000000003", ["a dog that barks"]),
        ("000010000", ["a cow"]),
    ]
    assert pairs[0].details["width"] == 256
    assert log.report().splitlines()[0] == "skipped 8: 5 failed to download, 2 failed to resize, 1 empty caption"
    assert (str(tmp_path / "00000_stats.json"), "failed to download: 5 of 10 pictures") in log.entries
    assert read(f"{tmp_path}/{{00000..00001}}.tar")[1].entries == log.entries


def test_failures_are_counted_once_however_many_workers_read(tmp_path):
    put_tar(tmp_path / "00000.tar", sample("000000000", "a cat") + sample("000000001", "a dog"))
    put(tmp_path, "00000_stats.json", json.dumps(FIGURES))
    logs = [read(tmp_path, worker=worker, workers=3)[1] for worker in range(3)]
    assert sum(len(log.entries) for log in logs) == 2


def test_folders_with_their_figures(tmp_path):
    for name, content in sample("000000000", "a cat"):
        put(tmp_path, f"00000/{name}", content)
    put(tmp_path, "00000_stats.json", json.dumps(FIGURES))
    pairs, log = read(tmp_path)
    assert [(pair.key, texts(pair)) for pair in pairs] == [("00000/000000000", ["a cat"])]
    assert log.report().splitlines()[0] == "skipped 7: 5 failed to download, 2 failed to resize"


@pytest.mark.parametrize("figures", ["", "[]", '{"failed_to_download": "many", "failed_to_resize": -1}', "{"])
def test_figures_that_cannot_be_read_do_no_harm(tmp_path, figures):
    put_tar(tmp_path / "00000.tar", sample("000000000", "a cat"))
    put(tmp_path, "00000_stats.json", figures)
    pairs, log = read(tmp_path)
    assert len(pairs) == 1
    assert not log.entries


def test_lines_that_json_does_not_join_stay_captions_of_their_own(tmp_path):
    put_tar(
        tmp_path / "a.tar", [("a.jpg", encode()), ("a.txt", "one\ntwo"), ("a.json", '{"captions": ["one", "two"]}')]
    )
    put_tar(tmp_path / "b.tar", [("b.jpg", encode()), ("b.txt", "one\ntwo"), ("b.json", '{"caption": "three"}')])
    assert [texts(pair) for pair in read(tmp_path)[0]] == [["one", "two"], ["one", "two", "three"]]
