"""Work divided among the workers of a Ray cluster."""

import os
import sys
from functools import partial

import pytest
from helpers import ray_shares

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.ray_workers import LOCAL, places, ray_workers


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="ray is not installed; run: pip install ray"), ray_workers(dict, LOCAL):
        pass


def test_several_launched_processes_are_refused(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="expected one process with --ray, got several"), ray_workers(dict, LOCAL):
        pass


def test_an_address_without_cluster_is_named():
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="expected a Ray cluster at auto, got none"), ray_workers(dict, "auto"):
        pass


@pytest.mark.parametrize(
    ("nodes", "count", "accelerators", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], None, True, (2, 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 5, True, (5, 1, 0)),
        ([{"CPU": 16.0}, {"CPU": 0.0, "memory": 1.0}, {"memory": 1.0}], None, True, (1, 16, 0)),
        ([{"CPU": 0.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], None, True, (2, 4, 1)),
        ([{"CPU": 0.0, "GPU": 8.0}, {"CPU": 8.0}], None, False, (1, 8, 0)),
        # The small machine has room for one worker of four CPUs, the large one for the other two.
        ([{"CPU": 5.0}, {"CPU": 8.0}], 3, True, (3, 2, 0)),
        ([{"CPU": 4.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 1.0}], None, True, (5, 1, 1)),
    ],
)
def test_workers_are_placed_where_there_is_room(nodes, count, accelerators, expected):
    workers, cpus, gpus = places(nodes, count, accelerators=accelerators)
    assert (workers, cpus, gpus) == expected
    assert sum(min(node.get("GPU", 0) if gpus else 99, node.get("CPU", 0) // cpus) for node in nodes) >= workers


@pytest.mark.parametrize(
    ("nodes", "count", "message"),
    [
        ([], None, "expected a Ray cluster with a CPU on one of its machines, got none on 0 machines"),
        (
            [{"CPU": 0.0}, {"memory": 1.0}],
            1,
            r"with a CPU .* got none on 2 machines; give ray start --num-cpus above 0",
        ),
        ([{"CPU": 0.0, "GPU": 4.0}, {"CPU": 8.0}], None, "with a CPU and a GPU on one of its machines, got none"),
        ([{"CPU": 4.0, "GPU": 8.0}], 5, "expected at most 4 workers, one for each GPU of the cluster, got 5"),
    ],
)
def test_clusters_without_room_are_refused(nodes, count, message):
    with pytest.raises(UserError, match=message):
        places(nodes, count, accelerators=True)


@pytest.mark.slow
def test_two_workers_share_the_work_and_a_killed_ones_is_done_again(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    with ray_workers(partial(ray_shares.make_state, "."), LOCAL, 2, accelerators=False) as workers:
        squares, processes = zip(*workers.map(ray_shares.square, range(20)), strict=True)
        assert sorted(squares) == [number**2 for number in range(20)]
        assert {f"made-{process}" for process in processes} == {path.name for path in tmp_path.iterdir()}  # once each
        assert len(set(processes)) == 2
        assert sorted(workers.map(ray_shares.square_at_second_try, range(6))) == [0, 1, 4, 9, 16, 25]
        assert len(list(tmp_path.glob("made-*"))) == 3  # the killed worker was started again
        with pytest.raises(UserError, match="expected another number, got 7"):
            list(workers.map(ray_shares.refuse, [7]))
        with pytest.raises(UserError, match="expected workers that run and stay, got one"):
            list(workers.map(ray_shares.always_killed, [0]))
    with (
        pytest.raises(UserError, match=r"expected at most \d+ workers, one for each CPU of the cluster, got 9999"),
        ray_workers(dict, LOCAL, 9999, accelerators=False),
    ):
        pass
