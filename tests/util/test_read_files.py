"""Reading files that others may have written: kinds of files, sizes, and causes in messages."""

import errno
import os

import pytest

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file, open_regular_file, read_file


def test_a_file_is_read_whole_also_behind_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        assert read_file(tmp_path / name, 5, "list", "make one") == b"12345"
        assert is_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "cannot read list .*nothing: No such file or directory; make one"),
        ("large", "expected list of up to 5 bytes, got .*large, which is larger; make one"),
        ("folder", "expected list, got .*folder, which is a folder; make one"),
        ("pipe", "expected list, got .*pipe, which is a pipe; make one"),
        ("zero", "expected list, got .*zero, which is a device or socket; make one"),
        ("loop", "cannot read list .*loop: Too many levels of symbolic links; make one"),
        ("x" * 300, "cannot read list .*xxx: File name too long; make one"),
        ("a\0b", "cannot read list .*: embedded null byte; make one"),
    ],
)
def test_anything_but_a_small_regular_file_is_refused(tmp_path, name, message):
    (tmp_path / "large").write_bytes(b"123456")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / name, 5, "list", "make one")
    assert is_file(tmp_path / name) == (name == "large")


def test_denied_access_is_named_as_such(tmp_path, monkeypatch):
    def deny(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(UserError, match=r"cannot read list .*a: permission denied; change its access rights or"):
        open_regular_file(tmp_path / "a", "list", "make one")
