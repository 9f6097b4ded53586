"""Pictures that cannot be looked at are kept in an index; only those that are known to be absent are removed."""

import os
import shutil

import pytest
from helpers.pictures import random_picture

from dalle_mini_impl.data import sample
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.scorer import picture_files
from dalle_mini_impl.search import listing
from dalle_mini_impl.search.index import ImageIndex
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def index(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    return index


def found(index, pictures):
    return {path.relative_to(pictures).as_posix() for path, _ in index.pictures()}


ALL = {"red.png", "sub/green.png", "sub/blue.jpg", "sub/deep/noise.png", "grey.webp"}


def test_folder_that_cannot_be_listed_keeps_its_pictures(index, pictures, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(pictures / "sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        (pictures / "red.png").unlink()  # known to be absent: its folder can be listed
        log = SkipLog()
        changes = index.update(pictures, log)
    assert (changes.kept, changes.removed, changes.unchanged) == (3, 1, 1)
    assert found(index, pictures) == ALL - {"red.png"}
    assert log.entries == [(str(pictures / "sub"), "unreadable folder: Permission denied")]
    (pictures / "sub/green.png").unlink()
    assert index.update(pictures).removed == 1


def test_link_to_a_drive_that_is_away_keeps_its_pictures(index, pictures, tmp_path):
    drive = tmp_path / "drive"
    shutil.move(pictures / "sub", drive)
    (pictures / "sub").symlink_to(drive)
    assert index.update(pictures).unchanged == 5
    drive.rename(tmp_path / "away")
    changes = index.update(pictures)
    assert (changes.kept, changes.removed) == (3, 0)
    assert found(index, pictures) == ALL
    (tmp_path / "away").rename(drive)
    assert index.update(pictures).unchanged == 5
    (pictures / "sub").unlink()  # the link itself is removed
    assert index.update(pictures).removed == 3


def test_file_system_that_is_not_mounted_keeps_its_pictures(index, pictures, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_mounts", lambda root, folders: {b"sub"})
        assert index.update(pictures).unchanged == 5
    shutil.rmtree(pictures / "sub")
    for mount_point_is_there in (False, True):
        if mount_point_is_there:
            (pictures / "sub").mkdir()
        changes = index.update(pictures)
        assert (changes.kept, changes.removed) == (3, 0)
    assert found(index, pictures) == ALL
    random_picture(1).save(pictures / "sub/green.png")  # mounted again, with less on it
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_mounts", lambda root, folders: {b"sub"})
        changes = index.update(pictures)
    assert (changes.kept, changes.removed) == (0, 2)


def test_file_that_cannot_be_read_any_more_is_kept(index, pictures, monkeypatch):
    def refuse(path):
        raise sample.UnusableSample("unreadable file: Input/output error")

    random_picture(77).save(pictures / "red.png")
    with monkeypatch.context() as patch:
        patch.setattr(picture_files, "read_bytes", refuse)
        changes = index.update(pictures)
    assert (changes.kept, changes.unreadable, changes.unchanged) == (1, 0, 4)
    assert found(index, pictures) == ALL
    assert index.update(pictures).embedded == 1  # it is tried again


def test_folder_whose_content_is_away_altogether_leaves_the_index_unchanged(index, pictures, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(UserError, match="got folders that cannot be listed; check their permissions"):
            index.update(pictures)
    assert found(index, pictures) == ALL


def test_formats_that_cannot_be_read_are_counted(index, pictures):
    for name in ("a.psd", "sub/b.PSD", "c.jxl", "d.txt", "sub/e.cr2"):
        (pictures / name).write_bytes(b"x")
    changes = index.update(pictures)
    assert changes.unsupported == {".psd": 2, ".jxl": 1, ".cr2": 1}
    assert changes.unreadable == 0


def test_loops_of_links_end_and_are_named(index, pictures):
    (pictures / "sub/loop").symlink_to(pictures)
    (pictures / "sub/self").symlink_to("self")
    log = SkipLog()
    assert index.update(pictures, log).unchanged == 5
    assert ("link to a folder listed already: its pictures count once") in dict(log.entries).values()


def test_fifo_is_not_read(index, pictures):
    os.mkfifo(pictures / "pipe.png")
    changes = index.update(pictures)
    assert (changes.unreadable, changes.unchanged) == (1, 5)
