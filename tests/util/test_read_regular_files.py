"""Reading the files of a user: regular ones only, up to a size."""

import os
import threading

import pytest

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import open_regular, read_bytes


def test_file_and_link_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    assert read_bytes(tmp_path / "link", 5) == b"12345"


def test_files_above_the_limit_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(UserError, match="at most 100 bytes, got 10000000000000"):
        read_bytes(tmp_path / "sparse", 100)


def test_folders_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for path, kind in (
        (tmp_path, "a folder"),
        (tmp_path / "x.png", "a pipe"),
        (tmp_path / "zero.png", "a device"),
        ("/dev/zero", "a device"),
        ("/dev/stdin", "a"),
    ):
        with pytest.raises(UserError, match=f"got {kind}"):
            open_regular(path)


def test_missing_files_raise_the_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent", 5)


def test_pipe_that_the_shell_made_is_read_where_it_is_allowed():
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, b"a cat\n"), os.close(writer)))
    thread.start()
    try:
        assert read_bytes(f"/dev/fd/{reader}", 100, allow_pipe=True) == b"a cat\n"
    finally:
        thread.join()
        os.close(reader)


def test_endless_input_is_refused_at_the_limit():
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(UserError, match="at most 1000 bytes"):
            read_bytes(f"/dev/fd/{descriptor}", 1000, allow_pipe=True)
    finally:
        os.close(descriptor)
