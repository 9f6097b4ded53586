"""Sizes are compared with the memory that is left."""

import pytest

from dalle_mini_impl.util import memory
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.memory import available_memory, check_memory


def test_some_memory_is_available():
    assert 2**20 < available_memory() < 2**50


def test_limit_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("5000000\n")
    (tmp_path / "current").write_text("3000000\n")
    files = (str(tmp_path / "max"), str(tmp_path / "current"))
    monkeypatch.setattr(memory, "CGROUP_FILES", (("/nowhere", "/nowhere"), files))
    assert available_memory() == 2000000
    (tmp_path / "max").write_text("max\n")
    assert available_memory() > 2**20


def test_work_beyond_it_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**31)
    check_memory(2**31, "a picture", "name a smaller size")
    message = r"expected a picture to fit into the 2\.0 GiB of free memory, got a need of 3\.0 GiB; name a smaller size"
    with pytest.raises(UserError, match=message):
        check_memory(3 * 2**30, "a picture", "name a smaller size")
