"""Sizes are compared with the memory that is left."""

import resource

import psutil
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


def test_limit_on_the_address_space_counts(monkeypatch):
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 10**8, resource.RLIM_INFINITY))
    assert 0 <= available_memory() <= 10**8
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used // 2, used))
    assert available_memory() == 0


def test_memory_of_another_device_counts_where_the_work_is_done_there():
    check_memory(2**60, "a picture", "name a smaller size", 2**60)
    with pytest.raises(UserError, match=r"fit into the 1\.0 GiB of free memory"):
        check_memory(2**30 + 1, "a picture", "name a smaller size", 2**30)


def test_more_processes_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * memory.PROCESS_BYTES)
    memory.check_processes(10, "run.workers")
    with pytest.raises(UserError, match=r"11 processes of run\.workers .*choose fewer"):
        memory.check_processes(11, "run.workers")
