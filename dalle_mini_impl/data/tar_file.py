"""Opens a tar, compressed or not, as a file that can be read at any place and never gives more bytes than it has."""

import bz2
import errno
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import SourcePath, open_source
from dalle_mini_impl.util.errors import UserError

COMPRESSIONS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
"""First bytes of a compressed file, and what opens it."""
FREE_UNPACKED_BYTES = 1 << 30
"""What a compressed tar may unpack to, however small it is."""
MAX_EXPANSION = 20
"""How many times its size a larger one may unpack to. Pictures hardly shrink; only an attack grows more."""
COPIED_BYTES = 1 << 20
"""Bytes read at once."""


class TarFileObject(io.RawIOBase):
    """A file for tarfile, which asks for as many bytes as a header claims, and would get that much memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        """In bytes."""
        file.seek(0)

    def read(self, count: int = -1) -> bytes:
        """Read at most `count` bytes; all that are left if it is negative."""
        left = max(0, self.size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Set the place of the next read."""
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """The place of the next read."""
        return self._file.tell()

    def skip_zeros(self, start: int) -> int:
        """The first block of a tar (512 bytes) from `start` on that is not all zero, or the end of the file.

        Holes of sparse files, which can be far larger than the disk, are passed over without being read. Leaves the
        place of the next read as it is.
        """
        place = self.tell()
        try:
            while start < self.size:
                start = max(start, self._next_data(start) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
                self.seek(start)
                block = self.read(COPIED_BYTES)
                zeros = len(block) - len(block.lstrip(b"\0"))
                if zeros < len(block):
                    return start + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
                start += max(len(block), 1)
            return self.size
        finally:
            self.seek(place)

    def _next_data(self, start: int) -> int:
        """The first byte from `start` on that is not in a hole, as far as the operating system tells."""
        try:
            descriptor = self._file.fileno()
        except io.UnsupportedOperation:  # in memory
            return start
        if not hasattr(os, "SEEK_DATA"):
            return start
        place = os.lseek(descriptor, 0, os.SEEK_CUR)  # the buffer of `_file` relies on it
        try:
            return os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            return self.size if error.errno == errno.ENXIO else start  # ENXIO: no data up to the end
        finally:
            os.lseek(descriptor, place, os.SEEK_SET)


@contextmanager
def open_tar(tar: SourcePath, log: SkipLog) -> Iterator[TarFileObject]:
    """Open a tar; one at an address is first copied, a compressed one unpacked into a temporary file without a name.

    Args:
        tar: the file.
        log: receives the fault if a compressed tar is damaged; what lies before it can be read.

    Raises:
        OSError: it cannot be read, or there is no space to unpack it.
        UserError: it is no regular file, or unpacks to far more bytes than pictures would.
    """
    with open_source(tar) as file:
        start = file.read(6)
        file.seek(0)
        unpack = next((opener for mark, opener in COMPRESSIONS if start.startswith(mark)), None)
        if unpack is None:
            yield TarFileObject(file)
            return
        limit = max(FREE_UNPACKED_BYTES, MAX_EXPANSION * os.fstat(file.fileno()).st_size)
        with tempfile.TemporaryFile() as unpacked:
            try:
                with unpack(file) as content:
                    while block := content.read1(COPIED_BYTES):  # unlike read, gives what lies before damage
                        unpacked.write(block)
                        if unpacked.tell() > limit:
                            raise UserError(
                                f"it unpacks to more than {limit} bytes; unpack it first if it is no attack"
                            )
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                log.add(str(tar), f"truncated tar: {error}")
            yield TarFileObject(unpacked)
