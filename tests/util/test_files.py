"""Writing files and folders whole or not at all, and finding shipped files."""

import json
import os

import pytest

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped, replace_file, replace_folder, write_json


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_half_and_interrupt(path):
    path.write_text("half")
    raise KeyboardInterrupt


def test_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.png"
    with replace_file(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert files_in(tmp_path) == ["new", "new/a.png"]


def test_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_pipe_receives_the_content_and_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with replace_file(pipe) as temporary:
            temporary.write_bytes(b"new")
        assert os.read(reader, 9) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_failure_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as temporary:
        write_half_and_interrupt(temporary)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["a.txt"]


def test_failure_before_the_first_byte_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="early"), replace_file(tmp_path / "a.txt"):
        raise ValueError("early")
    assert files_in(tmp_path) == []


def test_folder_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "set"
    with replace_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("whole")
        assert not path.exists()
    assert files_in(tmp_path) == ["new", "new/set", "new/set/inner", "new/set/inner/a.txt"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_folder_is_replaced_with_all_its_files(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with replace_folder(path) as temporary:
        (temporary / "new.txt").write_text("new")
        assert files_in(path) == ["old.txt"]
    assert files_in(tmp_path) == ["set", "set/new.txt"]


def test_failure_leaves_the_old_folder_and_no_temporary_folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_folder(path) as temporary:
        write_half_and_interrupt(temporary / "new.txt")
    assert files_in(tmp_path) == ["set", "set/old.txt"]


def test_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = os.rename

    def fail_at_target(source, target):
        if str(target) == str(path) and ".old." not in str(source):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_target)
    with pytest.raises(UserError, match=r"cannot write .*disk full"), replace_folder(path) as temporary:
        (temporary / "new.txt").write_text("new")
    assert (path / "old.txt").read_text() == "old"


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_unwritable_path_is_refused(tmp_path, replace):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*inside: .*choose a writable path"):
        replace(tmp_path / "file" / "inside").__enter__()
    assert files_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_interrupt_between_the_renames_loses_no_file(tmp_path, monkeypatch):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = os.rename

    def stop_at_target(source, target):
        if str(target) == str(path):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", stop_at_target)
    with pytest.raises(KeyboardInterrupt), replace_folder(path) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [file.read_text() for file in tmp_path.rglob("*.txt")] == ["old"]


def test_existing_file_takes_precedence_over_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "emoji").mkdir(parents=True)
    own = tmp_path / "configs" / "emoji" / "transformer.yaml"
    own.write_text("{}")
    assert find_shipped("configs/emoji/transformer.yaml").resolve() == own
    own.unlink()
    path = find_shipped("configs/emoji/transformer.yaml")
    assert path.is_file()
    assert tmp_path not in path.resolve().parents
    assert str(find_shipped("configs/nothing.yaml")) == "configs/nothing.yaml"


def test_json_is_written_as_utf_8(tmp_path):
    values = {"emoji": "❤️", "values": [1, 2.5]}
    path = write_json(tmp_path / "new" / "figures.json", values)
    assert json.loads(path.read_text(encoding="utf-8")) == values
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*; choose a writable path"):
        write_json(tmp_path / "file" / "figures.json", {})
