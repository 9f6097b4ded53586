"""Files of encoded blocks, and the token cache that they become."""

import numpy as np
import pytest
from helpers.processes import Forked, kill_self

from dalle_mini_impl.data.blocks import SampleBlock
from dalle_mini_impl.data.encoded_blocks import EncodedBlocks
from dalle_mini_impl.data.entries import ENTRY_FILES, PictureEntry, write_entries
from dalle_mini_impl.data.pair import Caption, SkipLog
from dalle_mini_impl.util import files, temporary_names
from dalle_mini_impl.util.errors import UserError

WORK = {"variants": 2, "data": {"source": "a"}}
FILES = {"image_ids.npy": ("uint16", (2, 3, 4)), "shares.npy": ("float16", (2, 3, 4, 5))}


def entry(number, split):
    return PictureEntry(
        f"ä{number}", split, False, (Caption(f"number {number}", "de"),), {"kind": "thing", "n": number}
    )


def ids(numbers, split):
    """Arrays of pictures that tell them apart."""
    variants = 2 if split == "train" else 1
    return {
        name: np.broadcast_to(
            np.array(numbers, kind).reshape(-1, *[1] * len(shape)), (len(numbers), variants, *shape[1:])
        )
        for name, (kind, shape) in FILES.items()
    }


def log_of(*names):
    log = SkipLog()
    for name in names:
        log.add(name, "broken picture: a test")
    return log


@pytest.fixture
def blocks(tmp_path):
    """Three blocks: of both splits, of training pictures alone, and of none."""
    made = EncodedBlocks(tmp_path / "ids.blocks")
    made.prepare(WORK)
    write(made, SampleBlock(1, 0), True, {"train": [4], "validation": []}, "c")
    write(made, SampleBlock(0, 0), False, {"train": [1, 2], "validation": [3]}, "a", "b")
    write(made, SampleBlock(0, 1), True, {"train": [], "validation": []})
    return made


def write(blocks, block, is_last, numbers, *skipped):
    entries = {split: [entry(number, split) for number in own] for split, own in numbers.items()}
    blocks.write(block, is_last, entries, {split: ids(own, split) for split, own in numbers.items()}, log_of(*skipped))


def test_blocks_are_joined_in_their_order(blocks, tmp_path):
    counts = blocks.count()
    assert counts == {"train": 3, "validation": 1}
    assert [name for name, _ in blocks.skipped().entries] == ["a", "b", "c"]
    out = tmp_path / "out"
    out.mkdir()
    blocks.join(out, counts, FILES)
    for split, numbers in (("train", [1, 2, 4]), ("validation", [3])):
        for name, expected in ids(numbers, split).items():
            found = np.load(out / split / name)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)
        (tmp_path / split).mkdir()
        write_entries(tmp_path / split, [entry(number, split) for number in numbers])
        for name in ENTRY_FILES:
            assert (out / split / name).read_bytes() == (tmp_path / split / name).read_bytes()


def test_what_is_finished_is_read_from_the_names(blocks):
    finished = blocks.finished()
    assert finished.blocks == {SampleBlock(0, 0), SampleBlock(0, 1), SampleBlock(1, 0)}
    assert finished.lengths == {0: 2, 1: 1}
    assert finished.is_whole(0)
    (blocks.folder / "000000-000000.npz").unlink()
    assert not blocks.finished().is_whole(0)
    (blocks.folder / "000001-000000-last.npz").unlink()
    assert not blocks.finished().is_whole(1)


def test_numbers_of_any_length_are_in_order(blocks, tmp_path):
    for number in (10**6, 10**6 - 1, 10**6 + 1):
        write(blocks, SampleBlock(1, number), False, {"train": [5], "validation": []}, str(number))
        write(blocks, SampleBlock(number, 0), True, {"train": [6], "validation": []}, f"part {number}")
    finished = blocks.finished()
    assert {SampleBlock(1, 10**6 + 1), SampleBlock(10**6 + 1, 0)} <= finished.blocks
    assert finished.is_whole(10**6)
    expected = [f"{kind}{number}" for kind in ("", "part ") for number in (10**6 - 1, 10**6, 10**6 + 1)]
    assert [name for name, _ in blocks.skipped().entries] == ["a", "b", "c", *expected]
    write(blocks, SampleBlock(1, 10**5), False, {"train": [], "validation": []})
    assert SampleBlock(1, 10**6) in blocks.finished().blocks  # whose name begins alike


def test_a_partial_block_is_read_again_by_the_next_run(blocks):
    block = SampleBlock(2, 0)
    log = log_of("tar")
    log.add("tar", "unreadable tar: a test", may_be_read_later=True)
    blocks.write(block, True, {split: [] for split in ("train", "validation")}, {}, log)
    assert not blocks.finished().is_whole(2)
    assert blocks.finished(partial=True).is_whole(2)
    kept = (blocks.folder / "000002-000000-last-partial.npz").read_bytes()
    write(blocks, block, False, {"train": [7], "validation": []})
    assert block in blocks.finished().blocks
    assert not blocks.finished(partial=True).is_whole(2)
    assert [path.name for path in blocks.folder.glob("000002*")] == ["000002-000000.npz"]
    # As after a kill before it is removed.
    (blocks.folder / "000002-000000-last-partial.npz").write_bytes(kept)
    assert not blocks.finished(partial=True).is_whole(2)
    assert blocks.count() == {"train": 4, "validation": 1}


def test_the_folder_is_removed_whole_or_not_at_all(blocks, tmp_path):
    def rmtree(path, **_):
        (path / "work.json").unlink()
        kill_self()

    def removed():
        files.shutil.rmtree = rmtree
        blocks.remove()

    assert Forked(tmp_path / "output", removed).wait() == -9
    assert not blocks.folder.exists()
    blocks.prepare(WORK)
    temporary_names._remove_litter.cache_clear()  # a new process looks at each folder anew
    temporary_names.remove_litter(tmp_path)  # as what writes the cache does
    assert [path.name for path in tmp_path.iterdir() if "blocks" in path.name] == ["ids.blocks"]


def test_the_same_work_goes_on_and_other_work_is_refused(blocks):
    blocks.prepare(WORK)
    with pytest.raises(UserError, match=r"begun with another data, seed; repeat the command .* or remove"):
        blocks.prepare({**WORK, "data": {"source": "b"}, "seed": 1})
    (blocks.folder / "work.json").write_text("{")
    with pytest.raises(UserError, match=r"work\.json is damaged"):
        blocks.prepare(WORK)


def test_where_no_block_is_finished_other_work_begins(tmp_path):
    blocks = EncodedBlocks(tmp_path / "ids.blocks")
    blocks.prepare(WORK)
    blocks.prepare({"seed": 1})
    write(blocks, SampleBlock(0, 0), True, {"train": [1], "validation": []})
    with pytest.raises(UserError, match=r"begun with another seed"):
        blocks.prepare({"seed": 2})


def test_a_folder_that_is_not_shared_is_told(blocks, tmp_path):
    blocks.check_shared()
    with pytest.raises(UserError, match=r"other\.blocks on every machine, got none .* all machines share"):
        EncodedBlocks(tmp_path / "other.blocks").check_shared()


def test_an_empty_file_is_found(blocks):
    (blocks.folder / "000000-000000.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"000000-000000\.npz is damaged"):
        blocks.count()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "ids.blocks").mkdir()
    (tmp_path / "ids.blocks" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"letter\.txt"):
        EncodedBlocks(tmp_path / "ids.blocks").prepare(WORK)


@pytest.mark.parametrize("part", ["image_ids", "entries"])
def test_a_changed_bit_is_found(blocks, tmp_path, part):
    path = blocks.folder / "000000-000000.npz"
    content = bytearray(path.read_bytes())
    place = content.rfind(b"number 2") if part == "entries" else content.index(b"train/image_ids.npy") + 200
    content[place] ^= 4
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"000000-000000\.npz is damaged .* remove it and repeat the command"):
        blocks.join(tmp_path / "out", {"train": 3, "validation": 1}, FILES)
