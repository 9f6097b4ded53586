import errno
import os
import time

import pytest

from dalle_mini_impl.serve import picture_files
from dalle_mini_impl.serve.picture_files import PictureFiles
from dalle_mini_impl.util.errors import UserError


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_pictures_are_found_by_a_name_that_cannot_be_guessed(tmp_path):
    files = PictureFiles(tmp_path / "new" / "folder", 60)
    names = {files.add(b"picture %d" % number) for number in range(20)}
    assert len(names) == 20
    assert all(len(name) == 47 and picture_files.NAME.fullmatch(name) for name in names)
    assert sorted(files.read(name) or b"" for name in names) == sorted(b"picture %d" % number for number in range(20))
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == names
    if os.name == "posix":
        assert (tmp_path / "new" / "folder").stat().st_mode & 0o77 == 0
        assert (tmp_path / "new" / "folder" / names.pop()).stat().st_mode & 0o77 == 0


def test_nothing_else_is_read(tmp_path):
    folder = tmp_path / "folder"
    files = PictureFiles(folder, 60)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "notes.txt").write_bytes(b"secret")
    link = folder / ("a" * 43 + ".png")
    link.symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", "/etc/passwd", "notes.txt", link.name, "", ".", "b" * 43 + ".png", "c" * 43 + "/.png\0"]
    assert [files.read(name) for name in names] == [None] * len(names)


def test_old_pictures_are_neither_read_nor_kept(tmp_path):
    files = PictureFiles(tmp_path, 60)
    old, new = files.add(b"old"), files.add(b"new")
    age(tmp_path / old, 61)
    (tmp_path / "notes.txt").write_bytes(b"mine")
    age(tmp_path / "notes.txt", 10_000)
    assert files.read(old) is None
    files.remove_old()
    assert {path.name for path in tmp_path.iterdir()} == {new, "notes.txt"}
    assert files.read(new) == b"new"


def test_beyond_a_number_the_oldest_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_FILES", 3)
    files = PictureFiles(tmp_path, 60)
    names = [files.add(b"x") for _ in range(5)]
    for number, name in enumerate(names):
        age(tmp_path / name, 50 - number)
    files.remove_old()
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    files = PictureFiles(tmp_path, 60)
    original = os.fdopen

    def full(file, mode):
        target = original(file, mode, buffering=0)
        target.write(b"half")
        target.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture_files.os, "fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        files.add(b"picture")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        PictureFiles(tmp_path / "file" / "folder", 60)
