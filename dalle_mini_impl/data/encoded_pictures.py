"""Stored pictures as JPEG, PNG or WebP, decoded whenever they are taken.

    pictures.bin    the bytes of the pictures, one after another
    pictures.npy    one row of numbers for each picture (`ROW`): where its bytes end, and their checksum

Both are memory-mapped, so that pictures take no memory of the process, and workers that make batches share them.
"""

import io
import mmap
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini_impl.data.checksums import open_array
from dalle_mini_impl.util.errors import UserError

PICTURES_FILE = "pictures.bin"
PICTURE_INDEX = "pictures.npy"
ROW = np.dtype([("end", "<u8"), ("checksum", "<u4")])
"""End of the picture in bytes, and the CRC-32 of its bytes."""
CODECS = ("JPEG", "PNG", "WEBP")
"""Formats of stored pictures, by Pillow's names."""
PNG_START = b"\x89PNG"
"""How PNG files begin."""
JPEG_QUALITY = 95
"""Of Pillow's scale; colours are stored as finely as brightness."""


class EncodedPictures:
    """The pictures of a store: of an array (n, H, W, 4) uint8 it has what `PictureStore` needs.

    Args:
        folder: of the store.
        frame: height and width of the pictures.

    Raises:
        OSError or ValueError: a file cannot be read, or is damaged.
    """

    def __init__(self, folder: Path, frame: tuple[int, int]) -> None:
        self._folder = folder
        self._index = open_array(folder / PICTURE_INDEX)
        if self._index.dtype != ROW or self._index.ndim != 1:
            raise ValueError(f"{PICTURE_INDEX} holds {self._index.dtype} {self._index.shape}, expected {ROW} (n,)")
        with (folder / PICTURES_FILE).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.shape = (len(self._index), *frame, 4)
        """As of an array."""
        self.dtype = np.dtype(np.uint8)
        """As of an array."""

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """RGBA pixels (len(rows), H, W, 4) uint8 of some pictures.

        Raises:
            UserError: one is damaged.
        """
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            try:
                content = self._content(int(row))
                pixels[place] = decode_stored(content)
            except Exception as error:  # Pillow's decoders raise almost anything
                raise UserError(
                    f"store {self._folder} is damaged ({type(error).__name__}: {error}); delete it, so that it is "
                    f"built anew"
                ) from error
        return pixels

    def verify(self) -> None:
        """Read all pictures and compare them with their checksums.

        Raises:
            ValueError: the bytes of a picture are damaged; the message names them.
        """
        for row in range(len(self)):
            self._content(row)
        if len(self) and int(self._index["end"][-1]) != len(self._bytes):
            raise ValueError(f"{PICTURES_FILE} has {len(self._bytes)} bytes, expected {self._index['end'][-1]}")

    def _content(self, row: int) -> bytes:
        start, end = int(self._index["end"][row - 1]) if row else 0, int(self._index["end"][row])
        content = self._bytes[start:end]
        if len(content) != end - start or zlib.crc32(content) != self._index["checksum"][row]:
            raise ValueError(
                f"{PICTURES_FILE} has other bytes than were written from {start} to {end}, "
                f"picture {row + 1} of {len(self)}"
            )
        return content


def decode_stored(content: bytes) -> np.ndarray:
    """RGBA pixels (H, W, 4) uint8 of a stored picture.

    Raises:
        Exception: of any kind, where it is damaged.
    """
    with Image.open(io.BytesIO(content), formats=CODECS) as image:
        return np.asarray(image.convert("RGBA"))


def encode_picture(rgba: np.ndarray, content: bytes, form: str) -> bytes:
    """Encode a picture that was fitted into the frame.

    Args:
        rgba: (H, W, 4) uint8.
        content: of the file that it was read from; it is kept as it is where it holds just these pixels.
        form: `png`, without any loss, or `jpeg`, for which what is transparent is a PNG as well.
    """
    is_opaque = bool((rgba[..., 3] == 255).all())
    may_be_lossy = form == "jpeg" and is_opaque
    if not (may_be_lossy and content.startswith(PNG_START)) and _holds(content, rgba):
        return content
    image = Image.fromarray(np.ascontiguousarray(rgba[..., :3]) if is_opaque else rgba)
    buffer = io.BytesIO()
    if may_be_lossy:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _holds(content: bytes, rgba: np.ndarray) -> bool:
    """Whether a file decodes to some pixels, and is not larger than these."""
    if not 0 < len(content) <= rgba.nbytes:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=CODECS) as image:
            if image.size != rgba.shape[1::-1]:
                return False
        return np.array_equal(decode_stored(content), rgba)
    except Exception:  # it is in another format
        return False
