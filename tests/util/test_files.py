"""Writing files and folders whole or not at all, and finding shipped files."""

import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import (
    check_file_output,
    check_folder_output,
    check_replaceable,
    find_shipped,
    leave_locks_to_parent,
    only_writer,
    replace_file,
    replace_folder,
    write_json,
)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put_file(path):
    path.parent.mkdir(parents=True)
    path.touch()


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
    with replace_folder(path, ["*.txt", "inner"]) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("whole")
        assert not path.exists()
    assert files_in(tmp_path) == ["new", "new/set", "new/set/inner", "new/set/inner/a.txt"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_folder_is_replaced_with_all_its_files(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with replace_folder(path, ["*.txt", "inner"]) as temporary:
        (temporary / "new.txt").write_text("new")
        assert files_in(path) == ["old.txt"]
    assert files_in(tmp_path) == ["set", "set/new.txt"]


def test_failure_leaves_the_old_folder_and_no_temporary_folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_folder(path, ["*.txt", "inner"]) as temporary:
        write_half_and_interrupt(temporary / "new.txt")
    assert files_in(tmp_path) == ["set", "set/old.txt"]


def test_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = os.rename

    moved = []

    def fail_at_target(source, target):
        if str(target) == str(path) and str(source) not in moved:
            raise OSError("disk full")
        moved.append(str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_target)
    with (
        pytest.raises(UserError, match=r"cannot write .*disk full"),
        replace_folder(path, ["*.txt", "inner"]) as temporary,
    ):
        (temporary / "new.txt").write_text("new")
    assert (path / "old.txt").read_text() == "old"


@pytest.mark.parametrize("replace", [replace_file, lambda path: replace_folder(path, ["*"])], ids=["file", "folder"])
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
    with pytest.raises(KeyboardInterrupt), replace_folder(path, ["*.txt", "inner"]) as temporary:
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


# --- what may be replaced


@pytest.mark.parametrize("names", [["precious.png"], ["model.bin", "a.txt"], ["sub/a.txt"], [".hidden"]])
def test_folder_of_other_things_is_not_replaced(tmp_path, names):
    path = tmp_path / "set"
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    before = files_in(path)
    message = r"expected .*set to be absent, empty or written by this command before, got .*; name another"
    with pytest.raises(UserError, match=message), replace_folder(path, ["a.txt", "b*.npy"]):
        pytest.fail("the work began")
    with pytest.raises(UserError, match=message):
        check_replaceable(path, ["a.txt", "b*.npy"])
    assert files_in(path) == before


def test_folder_without_the_marker_is_not_replaced(tmp_path):
    (tmp_path / "b1.npy").touch()
    with pytest.raises(UserError, match=r"got a folder with b1\.npy"):
        check_replaceable(tmp_path, ["a.txt", "b*.npy"])
    (tmp_path / "a.txt").touch()
    check_replaceable(tmp_path, ["a.txt", "b*.npy"])


def test_empty_and_absent_folders_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with replace_folder(tmp_path / name, ["a.txt"]) as temporary:
            (temporary / "a.txt").touch()
    assert files_in(tmp_path) == ["absent", "absent/a.txt", "empty", "empty/a.txt"]


def test_folder_filled_by_another_hand_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "set"
    with pytest.raises(UserError, match=r"got a folder with mine\.png"), replace_folder(path, ["a.txt"]):
        put_file(path / "mine.png")
    assert files_in(tmp_path) == ["set", "set/mine.png"]


@pytest.mark.parametrize("kind", ["a link", "a file"])
def test_link_or_file_is_not_replaced_by_a_folder(tmp_path, kind):
    path, target = tmp_path / "set", tmp_path / "target"
    target.mkdir()
    path.symlink_to(target) if kind == "a link" else path.touch()
    with pytest.raises(UserError, match=f"to be a folder or absent, got {kind}; name another folder"):
        check_replaceable(path, ["*"])


# --- temporary names


def test_planted_link_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda count: "00" * count)
    with replace_file(tmp_path / "a.txt") as temporary:
        pass
    temporary.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="cannot write"), replace_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("broken")
    assert (tmp_path / "victim").read_text() == "mine"


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path):
    def write(number):
        for _ in range(20):
            with replace_file(tmp_path / "a.txt") as temporary:
                for _ in range(100):
                    with temporary.open("a") as file:
                        file.write(number)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "1234"))
    assert (tmp_path / "a.txt").read_text() in [100 * number for number in "1234"]
    assert files_in(tmp_path) == ["a.txt"]


def test_litter_of_a_killed_process_is_removed_and_nothing_else(tmp_path):
    code = (
        "import os, sys, signal\n"
        "from dalle_mini_impl.util.files import replace_file, replace_folder\n"
        "with replace_file(sys.argv[1] + '/a.txt'), replace_folder(sys.argv[1] + '/set', ['*']) as folder:\n"
        "    (folder / 'inner').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(files_in(tmp_path)) == 3
    for name in (".mine.tmp", ".a.00000000-1-00000000.tmp", "b.tmp"):
        (tmp_path / name).touch()
    with replace_file(tmp_path / "b.txt") as temporary:
        temporary.touch()
    assert files_in(tmp_path) == [".a.00000000-1-00000000.tmp", ".mine.tmp", "b.tmp", "b.txt"]


def test_long_names_are_written(tmp_path):
    for name in ("a" * 250, "ä" * 125, "a" * 200 + "." + "b" * 50):
        with replace_file(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).read_text() == "new"


def test_file_gets_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with replace_file(tmp_path / "a.txt") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- one writer


def test_second_writer_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "new" / "run"
    with only_writer(path):
        for target in (path, tmp_path / "new" / ".." / "new" / "run"):
            with pytest.raises(UserError, match=r"expected to write .*run alone, got another run"), only_writer(target):
                pytest.fail("the work began")
        with only_writer(tmp_path / "new" / "other"):
            pass
    with only_writer(path):
        pass
    assert files_in(tmp_path) == ["new"]


def test_lock_of_a_killed_process_counts_no_more(tmp_path):
    code = (
        "import os, sys, signal\n"
        "from dalle_mini_impl.util.files import only_writer\n"
        "with only_writer(sys.argv[1]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert files_in(tmp_path) == [".run.lock"]
    with only_writer(tmp_path / "run"):
        pass
    assert files_in(tmp_path) == []


# --- outputs that are checked before work begins


def test_outputs_that_can_be_written_pass(tmp_path):
    check_file_output(tmp_path / "new" / "a.PNG", [".png"])
    check_file_output("/dev/null")
    check_folder_output(tmp_path / "newer")
    assert files_in(tmp_path) == []


def test_outputs_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"expected .*a\.txt to end in \.png or \.jpg, got \.txt; rename it"):
        check_file_output(tmp_path / "a.txt", [".png", ".jpg"])
    with pytest.raises(UserError, match=r"to end in \.png, got no ending"):
        check_file_output(tmp_path / "a", [".png"])
    with pytest.raises(UserError, match=r"to be a file, got a folder; name a file in it"):
        check_file_output(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*inside\.png: .*; choose a writable path"):
        check_file_output(tmp_path / "file" / "inside.png")
    with pytest.raises(UserError, match=r"cannot write .*file: .*; choose a writable path"):
        check_folder_output(tmp_path / "file")


def test_json_has_null_for_numbers_that_it_does_not_have(tmp_path):
    values = {"a": math.nan, "b": [1.5, -math.inf, (math.inf,)], "c": "NaN", 3: float("1e300")}
    text = write_json(tmp_path / "a.json", values).read_text()
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed == {"a": None, "b": [1.5, None, [None]], "c": "NaN", "3": 1e300}


WRITERS = {
    "replace_file": lambda path: replace_file(path).__enter__(),
    "replace_folder": lambda path: replace_folder(path, ("marker",)).__enter__(),
    "only_writer": lambda path: only_writer(path).__enter__(),
    "check_replaceable": lambda path: check_replaceable(path, ("marker",)),
    "check_file_output": check_file_output,
    "check_folder_output": check_folder_output,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_name_that_no_file_can_have_is_refused_in_one_line(tmp_path, writer):
    path = tmp_path / ("x" * 300) / ("y" * 300)
    with pytest.raises(UserError, match=r"cannot write .*: File name too long; choose a writable path"):
        WRITERS[writer](path)


@pytest.mark.parametrize("writer", ["only_writer", "check_file_output", "check_folder_output"])
def test_a_current_folder_that_was_deleted_is_refused_in_one_line(tmp_path, monkeypatch, writer):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(UserError, match="cannot write name: No such file or directory"):
        WRITERS[writer]("name")


def test_a_forked_process_that_outlives_its_parent_keeps_no_lock(tmp_path):
    ready, go_on = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        with only_writer(tmp_path / "a"):
            if os.fork() == 0:
                leave_locks_to_parent()
                os.write(ready[1], b".")
                os.read(go_on[0], 1)
                os._exit(0)
            os.read(ready[0], 1)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        with only_writer(tmp_path / "a"):
            pass
    finally:
        os.write(go_on[1], b".")
