"""Pictures of many prompts, written as they are finished."""

import json
import os
import tarfile
import weakref
from typing import Any

import numpy as np
import pytest
from helpers.processes import Forked, kill_self
from PIL import Image

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.pipeline import bulk
from dalle_mini_impl.pipeline.bulk import BulkFolder, draw_blocks
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import only_writer
from dalle_mini_impl.util.save_picture import read_metadata

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "a red heart"},
    {"prompt": "a red heart", "seed": 5},
    {"prompt": "a cat\nand a dog", "guidance": 1.0, "keep": 1},
    {"prompt": "zwei Katzen", "candidates": 5, "keep": 3},
    {"prompt": "心形", "seeds": [7, 8], "rank": "none"},
    {"prompt": "a tree", "negative": "a house", "temperature": 0.0},
    {"prompt": "a house"},
]
OPTIONS = {"candidates": 3, "keep": 2, "rank": "none"}
"""Without scores, whose last digits depend on which prompts share a batch where PyTorch computes them."""


def draw(
    dalle, path, *, as_tar=True, blocks=None, on_progress=lambda count: None, settings=None, format="png", **changes
):
    """Draw `PROMPTS` in blocks of three; returns how many were drawn now."""
    folder = BulkFolder(path=path, count=len(PROMPTS), as_tar=as_tar, zoom=1, format=format, block=3)
    folder = folder.prepare(settings or {"seed": 0})
    chosen = range(folder.blocks) if blocks is None else blocks
    options = {**OPTIONS, "chunk": 4, **changes}
    return draw_blocks(dalle, lambda: iter(PROMPTS), folder, chosen, on_progress=on_progress, **options)


def contents(folder):
    """Every file by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tiny_dalle, tmp_path_factory):
    """What an undisturbed run writes, as tars and as PNG files."""
    folders = {as_tar: tmp_path_factory.mktemp("undisturbed") / "out" for as_tar in (True, False)}
    for as_tar, folder in folders.items():
        assert draw(tiny_dalle, folder, as_tar=as_tar) == len(PROMPTS)
    return folders


@pytest.mark.parametrize("as_tar", [True, False])
def test_pictures_and_lists_are_those_of_each_prompt_alone(tiny_dalle, undisturbed, tmp_path, as_tar):
    folder = undisturbed[as_tar]
    names = {"settings.json", *(f"{block:05d}.jsonl" for block in range(3))}
    if as_tar:
        for block in range(3):
            with tarfile.open(folder / f"{block:05d}.tar") as tar:
                tar.extractall(tmp_path, filter="data")
        assert set(os.listdir(folder)) == names | {f"{block:05d}.tar" for block in range(3)}
    else:
        assert set(os.listdir(folder)) == names | {f"{block:05d}" for block in range(3)}
    lists = [json.loads(line) for block in range(3) for line in (folder / f"{block:05d}.jsonl").open(encoding="utf-8")]
    assert [entry["index"] for entry in lists] == list(range(len(PROMPTS)))
    for entry, prompt in zip(lists, PROMPTS, strict=True):
        expected = tiny_dalle.generate(**{**OPTIONS, **prompt})
        assert (entry["prompt"], entry["negative"]) == (expected.prompt, expected.negative)
        assert [picture["seed"] for picture in entry["pictures"]] == [candidate.seed for candidate in expected]
        for picture, candidate in zip(entry["pictures"], expected, strict=True):
            path = (tmp_path if as_tar else folder) / picture["file"]
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(candidate.image))
            assert read_metadata(path)["pictures"][0]["seed"] == candidate.seed


def test_pictures_in_files_may_be_jpeg_or_webp(tiny_dalle, undisturbed, tmp_path):
    draw(tiny_dalle, tmp_path, as_tar=False, format="webp")
    path = tmp_path / "00000/00000001-01.webp"
    _, entry, *_ = (tmp_path / "00000.jsonl").read_text().splitlines()
    assert json.loads(entry)["pictures"][0]["file"] == "00000/00000001-01.webp"
    assert read_metadata(path) == read_metadata(undisturbed[False] / "00000/00000001-01.png")
    with pytest.raises(UserError, match="with another format"):
        draw(tiny_dalle, tmp_path, as_tar=False, format="jpg")


def test_pictures_in_tars_may_be_jpeg_or_webp(tiny_dalle, undisturbed, tmp_path):
    draw(tiny_dalle, tmp_path, format="webp")
    drawn, expected = ([*read_pairs(folder, SkipLog())] for folder in (tmp_path, undisturbed[True]))
    assert len(drawn) == len(expected)
    assert all(np.array_equal(np.asarray(a.image), np.asarray(b.image)) for a, b in zip(drawn, expected, strict=True))


def test_tars_are_a_source_to_train_from(undisturbed):
    log = SkipLog()
    pairs = list(read_pairs(undisturbed[True], log))
    assert not log.entries
    assert len(pairs) == sum(min(p.get("keep", 2), p.get("candidates", 3)) for p in PROMPTS)
    assert [caption.text for pair in pairs for caption in pair.captions][2:5] == ["a red heart"] * 2 + [
        "a cat and a dog"
    ]


@pytest.mark.parametrize("as_tar", [True, False])
@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_killed_run_is_continued_where_it_was(tiny_dalle, undisturbed, tmp_path, as_tar, after):
    def kill_after(count):
        nonlocal done
        done += count
        if done == after:
            kill_self()

    done = 0
    killed = Forked(tmp_path / "log", lambda: draw(tiny_dalle, tmp_path / "out", as_tar=as_tar, on_progress=kill_after))
    assert killed.wait() == -9, (tmp_path / "log").read_text()
    counts = []
    assert draw(tiny_dalle, tmp_path / "out", as_tar=as_tar, on_progress=counts.append) == len(PROMPTS) - after
    assert sum(counts) == len(PROMPTS)
    assert contents(tmp_path / "out") == contents(undisturbed[as_tar])
    assert draw(tiny_dalle, tmp_path / "out", as_tar=as_tar) == 0


def interrupt(dalle, path, as_tar):
    """A run that was broken off after four of the seven prompts: one of its second block is drawn."""
    with pytest.raises(KeyboardInterrupt):
        draw(dalle, path, as_tar=as_tar, on_progress=BreakOff(4))


class BreakOff:
    """Interrupts once so many prompts are drawn."""

    def __init__(self, after):
        self.left = after

    def __call__(self, count):
        self.left -= count
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("as_tar", [True, False])
def test_half_written_files_do_not_count(tiny_dalle, undisturbed, tmp_path, as_tar):
    out = tmp_path / "out"
    interrupt(tiny_dalle, out, as_tar)
    with (out / "00001.jsonl.part").open("ab") as file:
        file.write(b'{"index": 4, "prompt": "half a li')
    if as_tar:
        with (out / "00001.tar.part").open("ab") as file:
            file.write(bytes(700))
    else:
        (out / "00001" / "00000004-01.png").write_bytes(b"half a picture")
    assert draw(tiny_dalle, out, as_tar=as_tar) == 3
    assert contents(out) == contents(undisturbed[as_tar])


@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_pictures_that_a_power_cut_took_are_drawn_again(tiny_dalle, undisturbed, tmp_path, damage):
    out = tmp_path / "out"
    interrupt(tiny_dalle, out, True)
    part = out / "00001.tar.part"
    content = part.read_bytes()
    part.write_bytes(content[:-9] if damage == "cut off" else bytes(512) + content[512:])
    assert draw(tiny_dalle, out) == 4
    assert contents(out) == contents(undisturbed[True])


def test_a_block_whose_files_were_being_renamed_is_finished(tiny_dalle, undisturbed, tmp_path):
    out = tmp_path / "out"
    draw(tiny_dalle, out)
    (out / "00002.jsonl").rename(out / "00002.jsonl.part")
    assert draw(tiny_dalle, out) == 0
    assert contents(out) == contents(undisturbed[True])


def test_processes_that_draw_different_blocks_write_what_one_writes(tiny_dalle, undisturbed, tmp_path):
    assert draw(tiny_dalle, tmp_path / "out", blocks=[1]) == 3
    assert draw(tiny_dalle, tmp_path / "out", blocks=[0, 2], chunk=64) == 4
    assert contents(tmp_path / "out") == contents(undisturbed[True])


def test_results_are_not_kept(tiny_dalle, tmp_path, monkeypatch):
    alive = weakref.WeakSet()
    counts = []
    write = bulk._Block.write

    def write_and_count(block, index, result):
        alive.add(result)
        counts.append(len(alive))
        write(block, index, result)

    monkeypatch.setattr(bulk._Block, "write", write_and_count)
    draw(tiny_dalle, tmp_path / "out")
    assert len(counts) == len(PROMPTS)
    assert max(counts) <= 2


# --- folders that hold something else


def test_other_settings_are_refused(tiny_dalle, tmp_path):
    draw(tiny_dalle, tmp_path / "out")
    for changes, name in (({"settings": {"seed": 1}}, "seed"), ({"as_tar": False}, "format")):
        with pytest.raises(UserError, match=rf"of the same prompts and settings, got one with another {name}; name"):
            draw(tiny_dalle, tmp_path / "out", **changes)


def test_the_size_of_blocks_stays_as_it_was_begun(tmp_path):
    folder = BulkFolder(path=tmp_path / "out", count=9, as_tar=True, zoom=1, block=4)
    assert folder.prepare({"seed": 0}).blocks == 3
    other = BulkFolder(path=tmp_path / "out", count=9, as_tar=True, zoom=1, block=2).prepare({"seed": 0})
    assert [len(other.indices(block)) for block in range(other.blocks)] == [4, 4, 1]


def test_folders_of_the_user_are_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    folder = BulkFolder(path=tmp_path, count=9, as_tar=True, zoom=1)
    with pytest.raises(
        UserError, match=r"absent, empty or written by this command before, got a folder with photo.jpg"
    ):
        folder.prepare({})


@pytest.mark.parametrize("content", ["{", "[]", '{"block": 0}', '{"block": "3"}', "{}"])
def test_damaged_settings_are_refused(tmp_path, content):
    folder = BulkFolder(path=tmp_path / "out", count=9, as_tar=True, zoom=1)
    folder.prepare({})
    (tmp_path / "out" / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings.json is damaged|got one with another"):
        folder.prepare({})


def test_a_block_that_another_process_draws_is_refused(tiny_dalle, tmp_path):
    draw(tiny_dalle, tmp_path / "out", blocks=[])
    with (
        only_writer(tmp_path / "out" / "00001.jsonl"),
        pytest.raises(UserError, match=r"expected to write .*00001.jsonl alone, got another run"),
    ):
        draw(tiny_dalle, tmp_path / "out")
