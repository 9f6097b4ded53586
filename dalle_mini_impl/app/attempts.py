"""How many wrong passwords an address may try."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_WRONG = 10
"""Wrong passwords that an address may try within `WITHIN_SECONDS`."""
WITHIN_SECONDS = 600.0
"""How long a wrong password counts."""
MAX_ADDRESSES = 10_000
"""Addresses that are remembered; beyond, those that tried longest ago are forgotten."""


class Attempts:
    """Counts the wrong passwords of each address.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    def begin(self, address: str) -> float:
        """Try a password, which counts as wrong until `succeed`, so that many at once do not pass.

        Returns:
            Seconds after which the address may try again; 0 if it may now.
        """
        now = self._clock()
        wrong = self._wrong.setdefault(address, deque())
        self._wrong.move_to_end(address)
        while wrong and now - wrong[0] >= WITHIN_SECONDS:
            wrong.popleft()
        if len(wrong) >= MAX_WRONG:
            return wrong[0] + WITHIN_SECONDS - now
        wrong.append(now)
        if len(self._wrong) > MAX_ADDRESSES:
            self._wrong.popitem(last=False)
        return 0.0

    def succeed(self, address: str) -> None:
        """Forget the wrong passwords of an address, which has given the right one."""
        self._wrong.pop(address, None)
