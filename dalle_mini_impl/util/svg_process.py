"""The process that draws SVG files, see `dalle_mini_impl.util.svg`; it reads requests from standard input.

Run as a file, it imports nothing of this package.
"""

import contextlib
import struct
import sys
import threading
from typing import BinaryIO
from xml.etree import ElementTree

REQUEST = struct.Struct("<QI")
"""Length of the drawing in bytes and longer side of the picture in pixels; the drawing follows."""
REPLY = struct.Struct("<?Q")
"""Whether it could be drawn, and the length in bytes of the PNG, or else of the reason, that follows."""
MAX_MEMORY = 1 << 31
"""Most memory, in bytes, that the process may take, where the operating system can hold it to that."""
MAX_CPU_SECONDS = 10
"""Longest time in which this process computes one drawing, where the operating system can hold it to that."""
MAX_LEVELS = 256
"""Most levels of nested elements; the library needs room on the stack for each."""
STACK_BYTES = 1 << 26
"""Size of the stack; drawings of `MAX_LEVELS` levels need less than half of it."""


def clean_svg(data: bytes) -> str:
    """The drawing without the names of other files, without a document type and with at most `MAX_LEVELS` levels.

    What remains as a reference is a part of the same drawing, or a picture inside it.

    Raises:
        ValueError: it is no XML, or nested too deeply.
    """
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"the drawing is no valid XML: {error}") from error
    level = [root]
    for _ in range(MAX_LEVELS):
        for element in level:
            for name, value in list(element.attrib.items()):
                if name.rpartition("}")[2] == "href" and not value.strip().startswith(("#", "data:")):
                    del element.attrib[name]
        level = [child for element in level for child in element]
        if not level:
            return ElementTree.tostring(root, encoding="unicode")
    raise ValueError(f"the drawing has more than {MAX_LEVELS} levels of groups")


def draw(data: bytes, side: int) -> bytes:
    """A drawing as PNG, its longer side `side` pixels.

    Raises:
        ValueError: it cannot be drawn.
    """
    import resvg_py

    svg = clean_svg(data)
    # Fonts take a tenth of a second to find. The library's default dpi of 0 rejects sizes stated in mm, pt or in.
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg, width=side, height=side, dpi=96, skip_system_fonts="<text" not in svg and ":text" not in svg
        )
    )


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        length, side = REQUEST.unpack(header)
        data = requests.read(length)
        _limit_time(MAX_CPU_SECONDS)
        try:
            good, reply = True, draw(data, side)
        except Exception as error:
            good, reply = False, " ".join((str(error) or type(error).__name__).split()).encode()
        _limit_time(0)
        replies.write(REPLY.pack(good, len(reply)) + reply)
        replies.flush()


def _limit_time(seconds: int) -> None:
    """Have the operating system end this process once it has computed for some seconds; 0 for never.

    It does so also where the parent is gone. Waiting for a busy machine does not count, so that the same drawings are
    refused at all times.
    """
    with contextlib.suppress(ImportError, AttributeError):
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve standard input in a thread whose stack has room for `MAX_LEVELS` levels, however the machine is set up."""
    _limit_memory()
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
