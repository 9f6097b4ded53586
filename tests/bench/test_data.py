"""Rows of the way of pictures into a training."""

import mmap

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from dalle_mini_impl.bench import data
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.files import find_shipped


def test_rows_of_a_small_set(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process that has trained nothing yet
    monkeypatch.setattr(data, "PER_TAR", 50)
    monkeypatch.setattr(data, "STORE_STEPS", 2)
    rows = {row.name: row for row in data.data_rows(130, repeats=1)}
    loaders = [f"data/loader/{workers} workers" for workers in (0, 1, 2)]
    stores = [f"data/store/{workers} workers" for workers in (0, 2)]
    assert list(rows) == ["data/inspect", "data/store", *stores, "data/encode", "data/captions", *loaders]
    assert all(row.ours > 0 for row in rows.values())
    for name in ("data/inspect", "data/encode"):
        assert f"{130 / rows[name].ours:,.0f} pictures/s" in rows[name].note
        assert "bytes of memory a picture" in rows[name].note
    assert 100 < rows["data/store"].details["bytes_on_disk"] < 4 * 128**2 / 8
    assert f"{130 / rows['data/store'].ours:,.0f} pictures/s" in rows["data/store"].note
    for name in stores:
        assert rows[name].peer == "store of pixels"
        assert rows[name].note.startswith("pictures/s: ")
        assert rows[name].theirs > 0
    for name in ("data/captions", *loaders):
        assert rows[name].peer == "version 0.1"
        assert rows[name].theirs > 0


def test_the_former_tokenizer_gives_the_same_ids():
    path = find_shipped(data.TEXT_TOKENIZER)
    new, former = TextTokenizer(path), data.FormerTokenizer(path)
    for text in ("a red heart", "ein gelber Stern über dem Wasser", "x" * 40, "日本の猫"):
        for seed in range(5):
            randoms = [np.random.default_rng(seed) for _ in range(2)]
            ids = new.encode_with_dropout(text, 0.3, randoms[0])
            assert former.encode_with_dropout(text, 0.3, randoms[1]) == ids
            assert randoms[0].random() == randoms[1].random()


@pytest.mark.skipif(not data.Path("/proc/self/status").exists(), reason="reads /proc of Linux")
def test_growth_is_that_of_the_second_half():
    kept = []
    growth = data.Growth(100)
    for number in growth.watch(range(100)):
        if number >= 50:
            kept.append(mmap.mmap(-1, 2**21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))  # never memory that was freed
            kept[-1].write(bytes(2**21 - 1) + b"1")
    assert growth.bytes_per_picture == pytest.approx(2**21, rel=0.1)


def test_growth_counts_pictures_of_batches():
    growth = data.Growth(40)
    assert list(growth.watch(range(4), lambda _: 10)) == [0, 1, 2, 3]
    assert growth.bytes_per_picture >= 0
