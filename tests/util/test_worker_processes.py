"""Work divided among processes of this machine."""

import os
from functools import partial

import pytest
from helpers import divided
from tqdm import tqdm

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.worker_processes import divide


@pytest.fixture
def bar():
    with tqdm(disable=False) as bar:
        yield bar


def test_each_process_does_its_share_and_all_are_counted(bar):
    numbers, counts, processes = zip(*divide(divided.share, 3, bar, "shared"), strict=True)
    assert numbers == (0, 1, 2)
    assert counts == (3, 3, 3)
    assert os.getpid() not in processes
    assert bar.n == 3 * 32  # of 40 items each, counted by 16


def test_a_process_that_is_killed_is_told_in_one_line(bar):
    with pytest.raises(
        UserError, match=r"a process that shared was ended from outside, .* use fewer --processes than 2"
    ):
        divide(divided.share_of_a_killed_process, 2, bar, "shared")


def test_a_mistake_in_a_process_is_that_of_all(bar):
    with pytest.raises(UserError, match="expected another share, got the last"):
        divide(divided.refused_share, 2, bar, "shared")


@pytest.mark.parametrize(("event", "error"), [("mistake", UserError), ("Ctrl-C", KeyboardInterrupt)])
def test_the_others_are_stopped_and_none_prints_a_traceback(bar, tmp_path, capfd, event, error):
    with pytest.raises(error):
        divide(partial(divided.lasting_share, tmp_path / "stopped", event), 2, bar, "shared")
    assert (tmp_path / "stopped").exists()
    assert "Traceback" not in capfd.readouterr().err
