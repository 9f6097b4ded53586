"""One computation at a time, which the visitor that waits for it can stop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """A visitor has stopped the work, or left."""


class Work:
    """Which visitors' work is running. Work is done one after the other, so that memory is bounded."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._running: dict[str, threading.Event] = {}

    @contextmanager
    def begin(self, session: str) -> Iterator["Running"]:
        """Wait until no other work is running, and be stoppable until the block ends.

        Args:
            session: of the visitor.
        """
        with self._turn:
            stop = self._running[session] = threading.Event()
            try:
                yield Running(stop)
            finally:
                del self._running[session]

    def stop(self, session: str) -> bool:
        """Have the running work of a visitor raise `Stopped` at its next check; whether there was any."""
        stop = self._running.get(session)
        if stop is not None:
            stop.set()
        return stop is not None


class Running:
    """Work that is running.

    Args:
        stop: set once it is to end.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def check(self, done: object = None) -> None:
        """End the work if it was stopped; a callback for progress.

        Raises:
            Stopped: it was.
        """
        if self._stop.is_set():
            raise Stopped
