"""Blocks of a source: the same whoever reads them, and read once."""

import json
from collections import Counter

import pytest
from helpers.sources import encode, put, put_tar

from dalle_mini_impl.config.data import DataConfig, SourceConfig
from dalle_mini_impl.data.blocks import BlockEnd, FinishedBlocks, SampleBlock, SourceBlocks, SourcePicture
from dalle_mini_impl.data.mixture import read_sources
from dalle_mini_impl.data.pair import SkipLog

NOTHING = FinishedBlocks(set(), {})
COUNT = 11


def members(first, last):
    return [(f"{n:03d}.{ending}", encode() if ending == "png" else f"number {n}")
            for n in range(first, last) for ending in ("png", "txt")]  # fmt: skip


def tars(folder):
    put_tar(put(folder, "a.tar", b""), members(0, 4))
    put_tar(put(folder, "b.tar", b""), members(4, 5))
    put_tar(put(folder, "c.tar", b""), members(5, COUNT))
    return folder


def one_tar(folder):
    return put_tar(put(folder, "a.tar", b""), members(0, COUNT))


def pictures(folder):
    for name, content in members(0, COUNT):
        put(folder, name, content)
    return folder


def table(folder):
    pictures(folder / "files")
    rows = [{"path": f"files/{n:03d}.png", "caption": f"number {n}"} for n in range(COUNT)]
    return put(folder, "set.jsonl", "\n".join(map(json.dumps, rows)))


KINDS = {kind.__name__: kind for kind in (tars, one_tar, pictures, table)}


def read(config, size=3, finished=NOTHING, workers=1):
    """Captions of each block, and the blocks that are the last of their part, as some workers read them."""
    found: dict[SampleBlock, list[str]] = {}
    last = []
    logs: Counter[str] = Counter()
    for worker in range(workers):
        opened = None
        for item in SourceBlocks.open(config, size).read(finished, worker, workers):
            assert opened in (None, item.block)  # the pictures of a block come together
            if isinstance(item, SourcePicture):
                opened = item.block
                found.setdefault(item.block, []).append(item.pair.captions[0].text)
            else:
                assert isinstance(item, BlockEnd)
                opened = None
                found.setdefault(item.block, [])
                last += [item.block] * item.is_last
                logs.update(reason for _, reason in item.log.entries)
    return found, sorted(last), logs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_blocks_are_the_same_whoever_reads_them(tmp_path, kind, workers):
    config = DataConfig(source=str(KINDS[kind](tmp_path)))
    blocks, last, _ = read(config)
    assert read(config, workers=workers)[:2] == (blocks, last)
    assert sorted(text for texts in blocks.values() for text in texts) == sorted(f"number {n}" for n in range(COUNT))
    assert max(map(len, blocks.values())) == 3


def test_blocks_follow_the_tars(tmp_path):
    blocks, last, _ = read(DataConfig(source=str(tars(tmp_path))))
    sizes = {(block.part, block.number): len(texts) for block, texts in blocks.items()}
    assert sizes == {(0, 0): 3, (0, 1): 1, (1, 0): 1, (2, 0): 3, (2, 1): 3}
    assert last == [SampleBlock(0, 1), SampleBlock(1, 0), SampleBlock(2, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_finished_blocks_are_left_out(tmp_path, kind):
    config = DataConfig(source=str(KINDS[kind](tmp_path)))
    blocks, _, _ = read(config)
    done = sorted(blocks)[1:3]
    rest, _, _ = read(config, finished=FinishedBlocks(set(done), {}), workers=2)
    assert rest == {block: texts for block, texts in blocks.items() if block not in done}


def test_a_finished_part_is_not_opened(tmp_path):
    config = DataConfig(source=str(tars(tmp_path)))
    (tmp_path / "a.tar").write_bytes(b"no tar any more")
    finished = FinishedBlocks({SampleBlock(0, 0), SampleBlock(0, 1)}, {0: 2})
    blocks, _, logs = read(config, finished=finished)
    assert {block.part for block in blocks} == {1, 2}
    assert not logs
    # Without its first block the part is not whole, and is read again.
    assert read(config, finished=FinishedBlocks({SampleBlock(0, 1)}, {0: 2}))[2]


def test_a_tar_without_pictures_is_one_empty_block(tmp_path):
    tars(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"no tar at all")
    blocks, last, logs = read(DataConfig(source=str(tmp_path)), workers=2)
    assert blocks[SampleBlock(1, 0)] == []
    assert SampleBlock(1, 0) in last
    assert [reason.split(":")[0] for reason in logs] == ["unreadable tar"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_is_skipped_is_told_once(tmp_path, workers):
    pictures(tmp_path)
    (tmp_path / "004.txt").unlink()
    put(tmp_path, "008.png", b"no picture")
    put(tmp_path, "metadata.csv", "name without meaning\n")
    _, _, logs = read(DataConfig(source=str(tmp_path)), workers=workers)
    kinds = Counter(reason.split(":")[0] for reason in logs.elements())
    assert kinds == {"no caption": 1, "not a picture": 1, "unusable table": 1}


@pytest.mark.parametrize(
    ("kind", "expected"), [("one_tar", [0, 2, 4, 6, 8, 10]), ("tars", [0, 1, 2, 3, *range(5, 11)])]
)
def test_every_second_sample_or_tar(tmp_path, kind, expected):
    config = DataConfig(source=str(KINDS[kind](tmp_path)), every=2)
    blocks, _, _ = read(config, workers=2)
    assert sorted(text for texts in blocks.values() for text in texts) == sorted(f"number {n}" for n in expected)


def test_keys_of_several_sources_name_the_source(tmp_path):
    sources = (SourceConfig(path=str(one_tar(tmp_path / "x"))), SourceConfig(path=str(pictures(tmp_path / "y"))))
    items = list(SourceBlocks.open(DataConfig(sources=sources), 100).read(NOTHING))
    shown = [(item.source, item.key) for item in items if isinstance(item, SourcePicture)]
    assert shown == [(0, f"0/{n:03d}") for n in range(COUNT)] + [(1, f"1/{n:03d}") for n in range(COUNT)]


def test_of_several_sources_the_pictures_of_a_store_are_read(tmp_path):
    sources = (SourceConfig(path=str(one_tar(tmp_path / "x"))), SourceConfig(path=str(tars(tmp_path / "y"))))
    config = DataConfig(sources=sources, every=2)
    items = list(SourceBlocks.open(config, 100).read(NOTHING))
    keys = [item.key for item in items if isinstance(item, SourcePicture)]
    assert keys == [key for _, key, _ in read_sources(config, SkipLog())]
