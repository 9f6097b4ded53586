"""Memory that can still be used, so that a size from a file or an option is refused before anything is allocated."""

import math
from pathlib import Path

import psutil

from dalle_mini_impl.util.errors import UserError

CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of a container's memory: cgroup version 2 and 1."""


PROCESS_BYTES = 300 * 2**20
"""What a Python process takes that has imported PyTorch and reads pictures, at the least."""


def available_memory() -> int:
    """Bytes that this process can still allocate without swapping: what machine, container and `ulimit -v` leave."""
    available = int(min(psutil.virtual_memory().available, _address_space()))
    for limit, used in CGROUP_FILES:
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or no limit ("max")
            continue
    return max(available, 0)


def _address_space() -> float:
    """Bytes that the limit on this process's address space leaves; infinity without one."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms


def check_memory(needed: float, what: str, advice: str, available: int | None = None) -> None:
    """Refuse work that does not fit into the memory, before anything is allocated.

    Args:
        needed: bytes that the work allocates at least.
        what: the work, for the message.
        advice: what to do instead, for the message.
        available: bytes that are left where the work is done; by default those of `available_memory`.

    Raises:
        UserError: more is needed than is available.
    """
    available = available_memory() if available is None else available
    if needed > available:
        raise UserError(
            f"expected {what} to fit into the {available / 2**30:.1f} GiB of free memory, got a need of "
            f"{needed / 2**30:.1f} GiB; {advice}"
        )


def check_processes(count: int, setting: str) -> None:
    """Refuse more processes than fit into the memory, before the first is started.

    Args:
        count: processes.
        setting: what asks for them, for the message.

    Raises:
        UserError: there are too many.
    """
    check_memory(PROCESS_BYTES * count, f"{count} processes of {setting}", "choose fewer; one for each core is enough")
