"""What is known of pictures: read back from disk one at a time, searched as a whole, without memory of the process."""

import json
import subprocess
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers.training import DEADLINE, python

from dalle_mini_impl.data.checksums import write_header_file
from dalle_mini_impl.data.entries import (
    ENTRIES_FILE,
    ENTRY_FILES,
    INDEX_FILE,
    LANGUAGES_FILE,
    PictureEntries,
    PictureEntry,
    concept_hashes,
    concept_indices,
    concept_of,
    write_entries,
)
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import PIXELS_FILE
from dalle_mini_impl.data.token_cache import (
    IMAGE_IDS_FILE,
    CacheHeader,
    CaptionSampler,
    describe_cut_captions,
    open_cache,
    write_header,
)
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError

TRICKY = 'a "red" heart\nand \\ 心形 \u2028 {"text": "x"}'
ENTRIES = [
    PictureEntry("a", "train", True, (Caption("a red heart", "en"), Caption("ein rotes Herz", "de")), {"kind": "flag"}),
    PictureEntry("b/心", "validation", False, (), {"nested": {"text": "not a caption", "language": "xx"}}),
    PictureEntry("c", "train", False, (Caption(TRICKY, ""),), {"kind": 7, "concept": "heart"}),
    PictureEntry("d", "train", True, tuple(Caption(f"number {n}", "en") for n in range(9)), {"concept": "heart"}),
]
MANY = 50_000
BYTES_PER_PICTURE = 60


@pytest.fixture(params=["written now", "written by version 0.1", "in memory"])
def entries(request, tmp_path):
    if request.param == "in memory":
        return PictureEntries.of(ENTRIES)
    write_entries(tmp_path, ENTRIES)
    if request.param == "written by version 0.1":
        for name in (INDEX_FILE, LANGUAGES_FILE):
            (tmp_path / name).unlink()
    return PictureEntries.open(tmp_path)


def test_entries_are_read_back(entries):
    assert list(entries) == ENTRIES
    assert len(entries) == 4
    assert entries[2] == ENTRIES[2]
    assert entries[np.int64(-1)] == ENTRIES[3]
    assert entries[1:3] == ENTRIES[1:3]
    with pytest.raises(IndexError):
        entries[4]


def test_whole_sets_are_searched_by_number(entries):
    assert entries.languages == ("de", "en")
    assert entries.caption_counts().tolist() == [2, 0, 1, 9]
    assert entries.may_flip(np.array([0, 3, 1, 2])).tolist() == [True, True, False, False]
    assert entries.find("train").tolist() == [0, 2, 3]
    assert entries.find("train", ("flag", "7", "none")).tolist() == [2, 3]
    assert entries.find("validation", ("flag",)).tolist() == [1]


def test_some_lines_are_a_set_of_their_own(entries):
    some = entries.of_rows(np.array([3, 1]))
    assert list(some) == [ENTRIES[3], ENTRIES[1]]
    assert some.caption_counts().tolist() == [9, 0]
    assert some.may_flip(np.array([1, 0])).tolist() == [False, True]
    assert list(some.of_rows(np.array([0]))) == ENTRIES[:1]


def test_captions_are_found_by_their_whole_text(entries):
    assert all(entries.has_caption(text) for text in ("a red heart", "ein rotes Herz", TRICKY, "number 8"))
    assert not any(entries.has_caption(text) for text in ("red heart", "a red", "x", "", "number", "b/心"))
    some = entries.of_rows(np.array([1, 3]))
    assert some.has_caption("number 0")
    assert not some.has_caption("a red heart")


def test_a_caption_that_pictures_share_is_found_in_each_part():
    entries = PictureEntries.of(replace(ENTRIES[0], key=str(number)) for number in range(3))
    assert all(entries.of_rows(np.array([row])).has_caption("a red heart") for row in range(3))


def test_pictures_of_one_concept_have_one_number(entries):
    first, second, third, fourth = concept_hashes([concept_of(entry) for entry in entries[:4]])
    assert third == fourth
    assert len({first, second, third}) == 3
    assert concept_hashes([concept_of(entries[2])]) == [third]
    indices = concept_indices(entries)
    assert indices[2] == indices[3]
    assert len(set(indices)) == 3


def test_captions_examined_for_their_length_are_evenly_spaced():
    tokenizer = TextTokenizer("tokenizers/emoji.model")
    long = " ".join(["heart"] * 30)
    entries = PictureEntries.of(
        PictureEntry(str(n), "train", False, tuple(Caption(long if m == 2 else "heart") for m in range(n % 4)), {})
        for n in range(40)
    )
    texts = [caption.text for entry in entries for caption in entry.captions]
    for most in (7, 11, 25, 10**6):
        examined = texts[:: max(1, len(texts) // most)]
        percent = 100 * examined.count(long) / len(examined)
        line = describe_cut_captions(entries, tokenizer, 20, most)
        assert line.startswith(f"{percent:.1f} % of captions" if percent else "")
        assert bool(line) == (percent > 0)


# --- damage


def test_numbers_of_other_lines_are_refused(tmp_path):
    write_entries(tmp_path, ENTRIES)
    text = (tmp_path / ENTRIES_FILE).read_bytes()
    (tmp_path / ENTRIES_FILE).write_bytes(text + text)
    with pytest.raises(ValueError, match=r"pairs\.npy holds .* of other lines than pairs\.jsonl"):
        PictureEntries.open(tmp_path)


@pytest.mark.parametrize("content", [b"[3]", b'{"en": 1}', b"[", b"\xff"])
def test_damaged_languages_are_refused(tmp_path, content):
    write_entries(tmp_path, ENTRIES)
    (tmp_path / LANGUAGES_FILE).write_bytes(content)
    with pytest.raises((ValueError, TypeError)):
        PictureEntries.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{half\n", b"{}\n", b"[1]\n", b'{"captions": 3}\n'])
def test_damaged_lines_of_an_old_version_are_refused(tmp_path, content):
    (tmp_path / ENTRIES_FILE).write_bytes(content)
    with pytest.raises((ValueError, LookupError, TypeError)):
        PictureEntries.open(tmp_path)


def test_a_line_that_is_damaged_later_is_named(tmp_path):
    write_entries(tmp_path, ENTRIES)
    entries = PictureEntries.open(tmp_path)
    text = (tmp_path / ENTRIES_FILE).read_bytes()
    with (tmp_path / ENTRIES_FILE).open("r+b") as file:
        file.write(text.replace(b'"b/', b"{b/"))
    assert entries[0] == ENTRIES[0]
    with pytest.raises(UserError, match=r"pairs\.jsonl is damaged at line 2 .*; make its folder anew"):
        entries[1]


# --- memory


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A token cache of many pictures."""
    folder = tmp_path_factory.mktemp("many")
    for split in ("train", "validation"):
        (folder / split).mkdir()
        count = MANY if split == "train" else 3
        np.save(folder / split / IMAGE_IDS_FILE, np.zeros((count, 1, 1, 1), np.uint16))
        captions = (Caption("a picture of some length, with a number", "en"), Caption("ein Bild", "de"))
        write_entries(folder / split, (PictureEntry(f"{n:08d}", split, True, captions, {}) for n in range(count)))
    write_header(folder, CacheHeader("0123456789abcdef", 61, (1, 1)))
    open_cache(folder, "train", "0123456789abcdef")  # verified once
    return folder


def test_an_open_cache_takes_no_memory_of_the_process(many):
    tracemalloc.start()
    try:
        cache = open_cache(many, "train", "0123456789abcdef")
        captions = CaptionSampler(cache.entries, {"de": 3.0})
        random = np.random.default_rng(0)
        assert {captions.sample(row, random).language for row in range(0, MANY, 5000)} == {"en", "de"}
        assert not cache.entries.has_caption("a picture of some length")
        assert len(cache.entries.of_rows(cache.entries.find("train", ("flag",)))) == MANY
        assert tracemalloc.get_traced_memory()[1] < BYTES_PER_PICTURE * MANY
    finally:
        tracemalloc.stop()


def test_lines_are_plain_json(many):
    with (many / "train" / ENTRIES_FILE).open(encoding="utf-8") as lines:
        assert json.loads(next(lines))["captions"][1] == {"text": "ein Bild", "language": "de"}


OPEN_AND_MEASURE = """
import sys, time
import psutil
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.token_cache import CaptionSampler, open_cache
import numpy as np

before = psutil.Process().memory_info()
start = time.perf_counter()
if sys.argv[1] == "cache":
    opened = open_cache(sys.argv[2], "train", "0123456789abcdef")
else:
    opened = open_store(DataConfig(store=sys.argv[2]), "train")
seconds = time.perf_counter() - start
captions = CaptionSampler(opened.entries, {})
for row in range(0, len(opened), len(opened) // 1000):
    captions.sample(row, np.random.default_rng(row))
after = psutil.Process().memory_info()
print(len(opened), seconds, (after.rss - after.shared) - (before.rss - before.shared), after.rss - after.shared)
"""
"""Prints pictures, seconds to open, bytes of memory that this added, and all of the process, beyond mapped files."""


@pytest.mark.slow
def test_a_million_pictures_open_within_a_second(tmp_path, capsys):
    count = 1_000_000
    captions = (Caption("a picture of some length, with a number of words like those of the web", "en"),)
    entries = (PictureEntry(f"{n:08d}", "train", True, captions, {"kind": "plain"}) for n in range(count))
    cache, store = tmp_path / "cache", tmp_path / "store"
    (cache / "train").mkdir(parents=True)
    write_entries(cache / "train", entries)
    np.save(cache / "train" / IMAGE_IDS_FILE, np.zeros((count, 1, 1, 1), np.uint16))
    write_header(cache, CacheHeader("0123456789abcdef", 61, (1, 1)))
    store.mkdir()
    for name in ENTRY_FILES:
        (store / name).hardlink_to(cache / "train" / name)
    np.save(store / PIXELS_FILE, np.zeros((count, 1, 1, 4), np.uint8))
    identity = {"source": "", "store_size": 1, "validation": 0.1, "fit": "auto", "every": 1}
    write_header_file(store / "store.json", {"identity": identity, "size": 1, "count": count})
    for kind, folder in (("cache", cache), ("store", store)):
        for _ in range(2):  # the first time its files are verified
            process = python("-c", OPEN_AND_MEASURE, kind, str(folder), stdout=subprocess.PIPE)
            output, _ = process.communicate(timeout=DEADLINE)
        pictures, seconds, own, whole = map(float, output.split())
        with capsys.disabled():
            print(f"\n{kind}: {seconds:.3f} s, {own / count:.1f} bytes a picture, process {whole / 1e6:.0f} MB")
        assert (pictures, seconds < 1, own < BYTES_PER_PICTURE * count) == (count, True, True)
        assert whole < 300e6
