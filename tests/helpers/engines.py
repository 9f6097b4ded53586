"""An engine of `serve.engine` that tests can hold up."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dalle_mini_impl.serve.engine import Engine


@contextmanager
def busy(engine: Engine) -> Iterator[None]:
    """Within the block the engine does something else, so that what is submitted waits until its end."""
    begun, end = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        end.wait()

    with ExitStack() as stack:
        stack.callback(end.set)
        engine.call(wait)
        begun.wait()
        yield
