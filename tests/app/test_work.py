"""One computation at a time, which can be stopped."""

import threading

import pytest

from dalle_mini_impl.app.work import Stopped, Work


def test_work_is_stopped_at_its_next_check_and_only_for_its_visitor():
    work = Work()
    with work.begin("one") as running:
        assert not work.stop("two")
        running.check()
        assert work.stop("one")
        with pytest.raises(Stopped):
            running.check()
    assert not work.stop("one")


def test_work_ends_whatever_happens():
    work = Work()
    with pytest.raises(ValueError, match="no"), work.begin("one"):
        raise ValueError("no")
    with work.begin("one") as running:
        running.check()


def test_work_waits_for_the_work_before_it():
    work, order, second_may_run = Work(), [], threading.Event()

    def second():
        second_may_run.wait()
        with work.begin("two"):
            order.append("two")

    thread = threading.Thread(target=second)
    thread.start()
    with work.begin("one"):
        second_may_run.set()
        thread.join(0.05)
        assert thread.is_alive()
        order.append("one")
    thread.join()
    assert order == ["one", "two"]
