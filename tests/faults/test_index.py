"""Faults of image indexes: kills while files change, two runs at once, damaged files, a full disk."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers.disks import fill_disk, small_disk
from helpers.pictures import random_picture
from helpers.processes import Forked

from dalle_mini_impl.scorer import picture_files
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search import integrity
from dalle_mini_impl.search.index import ImageIndex
from dalle_mini_impl.util.errors import UserError

PICTURES = 60


@pytest.fixture(scope="module")
def scorer(tiny_model):
    return Scorer.from_pretrained(str(tiny_model))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(PICTURES):
        random_picture(number).save(folder / f"{number}.png")
    return folder


def content(index: ImageIndex) -> dict[Path, bytes]:
    """The vector of every picture, to the bit."""
    return {path: index.vectors[row].numpy().tobytes() for path, row in index.pictures()}


def update_and_rebuild(folder: Path, scorer: Scorer, pictures: Path) -> None:
    ImageIndex.open(folder, scorer).update(pictures)
    ImageIndex.rebuild(folder, scorer, pictures)


def update(folder: Path, scorer: Scorer, pictures: Path) -> None:
    torch.set_num_threads(1)
    ImageIndex.create(folder, scorer, replace=False).update(pictures)


@pytest.mark.slow
def test_index_killed_while_files_change_ends_as_a_fresh_one(pictures, scorer, tmp_path, monkeypatch, tries, report):
    monkeypatch.setattr(picture_files, "MAX_FILES", 4)  # many commits
    count = tries(20, 5)
    draw = random.Random(0)
    new = PICTURES
    started = time.monotonic()
    update(tmp_path / "timed", scorer, pictures)
    seconds = time.monotonic() - started
    killed = 0
    while killed < count:  # a run that had ended before its moment does not count
        process = Forked(tmp_path / "output", update, tmp_path / "index", scorer, pictures)
        until = time.monotonic() + draw.random() * seconds
        while time.monotonic() < until:  # files come, go, change and move while the run reads them
            present = sorted(pictures.iterdir())
            choice = draw.choice(present)
            action = draw.randrange(4)
            if action in (0, 3):  # as many of both, however often a slow run lets them come
                action = 0 if len(present) > 2 * PICTURES else 3 if len(present) < PICTURES // 2 else action
            if action == 0:
                choice.unlink()
            elif action == 1:
                choice.rename(pictures / f"moved {new}.png")
            else:
                random_picture(new).save(choice if action == 2 else pictures / f"{new}.png")
            new += 1
        killed += process.kill() < 0
    index = ImageIndex.create(tmp_path / "index", scorer, replace=False)
    index.update(pictures)
    fresh = ImageIndex.create(tmp_path / "fresh", scorer)
    fresh.update(pictures)
    assert content(index) == content(fresh)
    report("index: SIGKILL at random moments while files change", f"{killed} kills, equal to a fresh index")


def test_second_of_two_runs_is_refused_in_one_line(pictures, scorer, tmp_path, tries, report):
    count = tries(20, 2)
    for number in range(count):
        folder = tmp_path / f"index {number}"
        ImageIndex.create(folder, scorer)
        outputs = [tmp_path / f"output {number} {which}" for which in range(2)]
        processes = [Forked(output, update, folder, scorer, pictures) for output in outputs]
        codes = [process.wait() for process in processes]
        for code, output in zip(codes, outputs, strict=True):
            if code:
                assert output.read_text().splitlines()[-1].endswith("wait for that run or name another")
        assert 0 in codes
        index = ImageIndex.open(folder, scorer)
        assert index.update(pictures).unchanged == PICTURES
    report("index: two runs at once", f"{count} of {count} whole, the second refused or later")


def test_damage_of_every_file_is_found_and_repaired(pictures, scorer, tmp_path, tries, report):
    folder = tmp_path / "index"
    index = ImageIndex.create(folder, scorer)
    index.update(pictures)
    whole = content(index)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    draw = random.Random(0)
    count = tries(200, 20)
    for number in range(count):
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        name = draw.choice([path.name for path in sorted(copy.iterdir()) if path.stat().st_size])
        data = bytearray((folder / name).read_bytes())
        position = draw.randrange(len(data))
        if number % 2:
            del data[position:]
        else:
            data[position] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(bytes(data))
        with pytest.raises(UserError, match="dalle index DIR"):
            ImageIndex.open(folder, scorer).search("a cat")
        if name.endswith(".f16"):
            repaired = ImageIndex.open(folder, scorer)
            repaired.update(pictures)
        else:
            repaired, _ = ImageIndex.rebuild(folder, scorer, pictures)
        assert content(repaired) == whole
    report("index: bits flipped, files cut", f"{count} of {count} found, named and repaired")


def test_full_disk_leaves_the_index_and_the_next_run_continues(pictures, scorer, tmp_path, monkeypatch, report):
    monkeypatch.setattr(picture_files, "MAX_FILES", 4)
    with small_disk(tmp_path / "disk", 600) as disk:
        folder = disk / "index"
        first = tmp_path / "first"
        first.mkdir()
        for path in sorted(pictures.iterdir())[:5]:
            shutil.move(path, first)
        index = ImageIndex.create(folder, scorer)
        index.update(first)
        before = content(index)
        for path in pictures.iterdir():
            shutil.copy(path, first)
        refused = 0
        for spare in (0, 4096, 8192):
            ballast = fill_disk(disk, spare)
            with pytest.raises(UserError, match=r"make space|space on its disk") as caught:
                update_and_rebuild(folder, scorer, first)
            assert "\n" not in str(caught.value)
            refused += 1
            ballast.unlink()
            whole = content(ImageIndex.open(folder, scorer))
            assert before.items() <= whole.items()
        index = ImageIndex.open(folder, scorer)
        index.update(first)
        fresh = ImageIndex.create(tmp_path / "fresh", scorer)
        fresh.update(first)
        assert content(index) == content(fresh)
        assert (folder / integrity.DIGEST).is_file()
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
    report("index: full disk", f"{refused} of {refused} one line, the old index whole, continued after space was made")
