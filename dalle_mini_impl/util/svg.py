"""Draws SVG files as pictures, in a process of their own.

A drawing can hold anything: instructions that take hours, groups nested so deeply that the library which draws them
crashes, names of other files on this machine. So the library runs in a second process that is ended when it takes too
long or too much memory, and that is started anew where a drawing ended it.
"""

import atexit
import contextlib
import gzip
import importlib.util
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import dataclass, field

from PIL import Image

from dalle_mini_impl.util import svg_process
from dalle_mini_impl.util.errors import UserError, need_extra

SVG_ENDINGS = frozenset((".svg", ".svgz"))
"""File name endings, in lower case, of drawings; `.svgz` is compressed."""
GZIP = b"\x1f\x8b"
"""First bytes of a compressed file."""
SVG_SIDE = 512
"""Longer side in pixels of a drawing where nothing else is asked."""
SVG_START = 1 << 14
"""Bytes at the start of a file that tell whether it is a drawing; comments may come before the drawing's name."""
MAX_SVG_BYTES = 1 << 25
"""Largest drawing, uncompressed, that is read."""
MAX_SECONDS = 60
"""Longest time for one drawing, whatever else the machine does; `svg_process.MAX_CPU_SECONDS` is usually over first."""


def svg_installed() -> bool:
    """Whether the library that draws SVG files is installed."""
    return importlib.util.find_spec("resvg_py") is not None


def need_svg() -> UserError:
    """The error for SVG files without that library."""
    return need_extra("resvg-py", "svg")


def is_svg(start: bytes) -> bool:
    """Whether a file whose first `SVG_START` bytes are `start` looks like a drawing, which may be compressed."""
    if start[:2] == GZIP:
        with contextlib.suppress(zlib.error):
            start = zlib.decompressobj(31).decompress(start, SVG_START)
    start = start.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe\t\r\n ")  # also in UTF-16, with its mark
    return start[:1] == b"<" and re.search(rb"<([A-Za-z_][\w.-]*:)?svg[\s>/]", start) is not None


def draw_svg(data: bytes, side: int = SVG_SIDE) -> Image.Image:
    """Draw an SVG file with its own proportions and transparency.

    Other files that it names are never opened. Its text is drawn with the fonts of this machine.

    Args:
        data: the file, which may be compressed with gzip.
        side: longer side of the picture in pixels.

    Returns:
        An RGBA picture.

    Raises:
        UserError: the `svg` extra is not installed.
        ValueError: it is no SVG file, or one that takes too long, too much memory or too many levels.
    """
    if not svg_installed():
        raise need_svg()
    if data[:2] == GZIP:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(MAX_SVG_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"the compressed drawing is damaged: {error}") from error
    if len(data) > MAX_SVG_BYTES:
        raise ValueError(f"the drawing has more than {MAX_SVG_BYTES} bytes")
    with Image.open(io.BytesIO(_process().draw(data, side)), formats=("PNG",)) as image:
        if max(image.size) > side:
            raise ValueError(f"the drawing became {image.width} x {image.height} pixels, at most {side} were asked")
        return image.convert("RGBA")


@dataclass
class _DrawingProcess:
    """A process that draws, started with the first drawing."""

    owner: int = field(default_factory=os.getpid)
    """The process that started it: one that is forked from it needs another."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    child: subprocess.Popen[bytes] | None = None

    def draw(self, data: bytes, side: int) -> bytes:
        """The drawing as PNG."""
        with self.lock:
            child = self._running()
            timer = threading.Timer(MAX_SECONDS, child.kill)
            timer.daemon = True
            timer.start()
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(svg_process.REQUEST.pack(len(data), side) + data)
                child.stdin.flush()
                good, length = svg_process.REPLY.unpack(child.stdout.read(svg_process.REPLY.size))
                reply = child.stdout.read(length)
            except BaseException as error:
                self.end()  # also after an interrupt: the next drawing must not get this one's picture
                if isinstance(error, (OSError, struct.error)):
                    raise ValueError(
                        f"drawing it takes more than {svg_process.MAX_CPU_SECONDS} s or "
                        f"{svg_process.MAX_MEMORY >> 20} MiB, "
                        "or its groups are nested too deeply"
                    ) from error
                raise
            finally:
                timer.cancel()
        if not good:
            raise ValueError(reply.decode(errors="replace"))
        return reply

    def end(self) -> None:
        """End the second process; the next drawing starts another."""
        if self.child is not None and self.owner == os.getpid():
            with self.child as child:  # closes its pipes
                child.kill()
        self.child = None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.child is None or self.child.poll() is not None:
            self.child = subprocess.Popen(
                [sys.executable, "-I", svg_process.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self.child


_the_process = _DrawingProcess()


def _process() -> _DrawingProcess:
    global _the_process
    if _the_process.owner != os.getpid():
        _the_process = _DrawingProcess()
    return _the_process


atexit.register(lambda: _the_process.end())
