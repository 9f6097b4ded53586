"""Output in which control characters are shown as escapes: names and captions of files cannot steer the terminal."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from dalle_mini_impl.util.text import escape_controls

PROGRESS = re.compile("(?:\n|\r|\x1b\\[A)*")
"""How progress bars move the cursor, in writes of their own."""


class _EscapedStream:
    """A text stream that writes control characters as escapes.

    Args:
        stream: where to write.
        has_progress: keep the carriage returns with which a progress bar is drawn over.
    """

    def __init__(self, stream: TextIO, has_progress: bool) -> None:
        self._stream = stream
        self._has_progress = has_progress

    def write(self, text: str) -> int:
        if self._has_progress:
            if PROGRESS.fullmatch(text) is None:
                text = "\r".join(escape_controls(part) for part in text.split("\r"))
        else:
            text = escape_controls(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Show control characters as escapes in everything that the block prints as text; bytes are left as they are."""
    with (
        contextlib.redirect_stdout(_EscapedStream(sys.stdout, has_progress=False)),  # type: ignore[type-var]
        contextlib.redirect_stderr(_EscapedStream(sys.stderr, has_progress=True)),  # type: ignore[type-var]
    ):
        yield
