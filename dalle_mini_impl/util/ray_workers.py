"""Work divided among the machines of a Ray cluster (extra: ray)."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.text import printable

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
LOCAL = "local"
"""Address of a cluster that is started on this machine and ends with the program."""
RETRIES = 3
"""Times that a worker which was killed is started again, and that its share is done again."""


class RayWorkers(Generic[S]):
    """Workers of a Ray cluster, each with a state of its own, such as a model. Made by `ray_workers`.

    Args:
        make: makes the state, once in each worker.
        count: number of workers.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    def __init__(self, make: Callable[[], S], count: int, cpus: int, gpus: int) -> None:
        import ray

        self.count = count
        worker = ray.remote(_Worker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=RETRIES, max_task_retries=RETRIES
        )
        self._workers = [worker.remote(make, os.getcwd()) for _ in range(count)]

    def map(self, function: Callable[[S, T], R], items: Iterable[T], *, in_order: bool = False) -> Iterator[R]:
        """Results of a function for each item, each computed by any worker with its state.

        Where a worker is killed, its share is done again, so doing a share twice must do no harm.

        Args:
            function: from an importable module.
            items: shares of the work.
            in_order: whether results come in the order of the items, and not as they are finished.

        Raises:
            UserError: raised by the function, or workers are killed again and again.
        """
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool

        try:
            pool = ActorPool(self._workers)
            yield from (pool.map if in_order else pool.map_unordered)(_start(function), items)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except RayActorError as error:
            raise UserError(
                f"expected workers that run and stay, got one that ended {RETRIES + 1} times, or never began "
                f"({printable(str(error).strip().splitlines()[-1].strip())}); install this package on every machine, "
                f"and check their memory, or ask for fewer workers"
            ) from error


def _start(function: Callable[[S, T], R]) -> Callable[[Any, T], Any]:
    """How an `ActorPool` has a worker call a function."""
    return lambda worker, item: worker.run.remote(function, item)


class _Worker(Generic[S]):
    """What runs in the process of a worker.

    Args:
        make: see `RayWorkers`.
        folder: that relative paths refer to.
    """

    def __init__(self, make: Callable[[], S], folder: str) -> None:
        self._make, self._folder = make, folder
        self._state: list[S] = []

    def run(self, function: Callable[[S, T], R], item: T) -> R:
        """Call the function; the state is made by the first call, whose errors reach the program, unlike those here."""
        if not self._state:
            try:
                os.chdir(self._folder)
            except OSError as error:
                raise UserError(
                    f"expected {self._folder} on every machine of the cluster, got {error}; start in a shared folder"
                ) from error
            self._state.append(self._make())
        return function(self._state[0], item)


@contextmanager
def ray_workers(
    make: Callable[[], S], address: str, count: int | None = None, *, accelerators: bool = True
) -> Iterator[RayWorkers[S]]:
    """Workers on the machines of a Ray cluster, on which this package is installed and which share the folders used.

    Args:
        make: makes the state of a worker; from an importable module.
        address: of the cluster, or `LOCAL`.
        count: number of workers; by default one for each GPU, or for each machine if there are none.
        accelerators: whether workers may use GPUs.

    Raises:
        UserError: Ray is not installed, there is no cluster at this address, or its machines have too few CPUs or GPUs.
    """
    try:
        import ray
    except ImportError as error:
        raise need_extra("ray", "ray") from error
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("expected one process with --ray, got several; start it without a launcher")
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray raises bare ones as well, as where its processes do not start in time
        raise UserError(
            f"expected a Ray cluster at {address}, got none ({error}); start one with: ray start --head, or give "
            f"{LOCAL}"
        ) from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield RayWorkers(make, *places(nodes, count, accelerators=accelerators))
    finally:
        ray.shutdown()


def places(nodes: Sequence[Mapping[str, float]], count: int | None, *, accelerators: bool) -> tuple[int, int, int]:
    """Number of workers that the machines of a cluster have room for, and CPUs and GPUs of each.

    Ray lets a worker wait without a limit that fits nowhere, so it is never asked for one.

    Args:
        nodes: the resources of each machine.
        count: number of workers; None for one for each GPU, or for each machine if there are none.
        accelerators: whether workers may use GPUs.

    Raises:
        UserError: there is no room for so many, or for any.
    """
    kind = "GPU" if accelerators and any(node.get("GPU") for node in nodes) else "CPU"
    useful = [node for node in nodes if int(node.get("CPU", 0)) and int(node.get(kind, 0))]
    if not useful:
        what = "a CPU" if kind == "CPU" else "a CPU and a GPU"
        raise UserError(
            f"expected a Ray cluster with {what} on one of its machines, got none on {len(nodes)} machines; give "
            f"ray start --num-cpus above 0 on those that are to work"
        )

    def room(cpus: int) -> int:
        return sum(min(int(node[kind]), int(node["CPU"]) // cpus) for node in useful)

    count = count or (room(1) if kind == "GPU" else len(useful))
    if count > room(1):
        raise UserError(
            f"expected at most {room(1)} workers, one for each {kind} of the cluster, got {count}; ask for fewer"
        )
    # As many as the smallest machine has for each of its workers, or fewer where machines differ much.
    cpus = max(1, min(int(node["CPU"]) for node in useful) // -(-count // len(useful)))
    while room(cpus) < count:
        cpus -= 1
    return count, cpus, int(kind == "GPU")
