"""Reads Parquet files, with the extra `parquet`: rows with pictures in them, as Hugging Face and img2dataset write
them, and tables of paths.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.parts import PendingSample
from dalle_mini_impl.data.remote import RemotePath, SourcePath, open_source
from dalle_mini_impl.data.sample import (
    UnusableSample,
    captions_from_fields,
    make_pair,
    may_be_read_later,
    read_bytes,
)
from dalle_mini_impl.util.errors import UserError, need_extra

T = TypeVar("T")

PARQUET_ENDING = ".parquet"
PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
"""Columns that may hold the bytes of pictures, in lower case; the first one counts. Of other names only those do that
hold bytes and path, as Hugging Face stores pictures."""
KEY_COLUMNS = ("key", "__key__")
"""Columns that may hold the key of a picture, in lower case; without one it is the file's name and the row's number."""
SPLIT_IN_NAME = re.compile(r"(train|training|validation|valid|val|dev|test)[-_.]", re.IGNORECASE)
"""How the name of a file begins that holds one split, such as `train-00000-of-00002.parquet`."""
ROWS_AT_ONCE = 32
"""Rows that are in memory together."""
BUFFER_BYTES = 1 << 20
"""Bytes of a column that are read at once."""


class DamagedParquet(UserError):
    """A Parquet file cannot be read, or not to its end."""

    def __init__(self, path: SourcePath, reason: str) -> None:
        super().__init__(f"expected {path} to be a Parquet file, got one that is damaged: {reason}; write it anew")
        self.reason = reason


def is_parquet(path: SourcePath) -> bool:
    """Whether a file is a Parquet file by its name."""
    return path.suffix.lower() == PARQUET_ENDING


def parquet_installed() -> bool:
    """Whether the extra that reads Parquet files is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def check_parquet() -> None:
    """Refuse to read Parquet files without the extra.

    Raises:
        UserError: it is not installed.
    """
    if not parquet_installed():
        raise need_extra("pyarrow", "parquet")


def holds_pictures(path: SourcePath) -> bool:
    """Whether a Parquet file has a column with the bytes of pictures.

    Raises:
        UserError: the extra is not installed, or the file is damaged.
        OSError: the file cannot be read.
    """
    return _looked_at(path, lambda file: picture_column(file.schema_arrow) != "")


def count_rows(path: SourcePath) -> int:
    """Number of rows of a file.

    Raises:
        UserError: the extra is not installed, or the file is damaged.
        OSError: the file cannot be read.
    """
    return _looked_at(path, lambda file: int(file.metadata.num_rows))


def picture_column(schema: Any) -> str:
    """The column of a schema of Arrow that holds the bytes of pictures; empty if none does."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    with_path = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and any(part.name == "bytes" and is_bytes(part.type) for part in field.type)
    ]
    plain = {field.name.lower(): field.name for field in schema if is_bytes(field.type) or field.name in with_path}
    return next((plain[name] for name in PICTURE_COLUMNS if name in plain), with_path[0] if with_path else "")


def parquet_rows(path: SourcePath) -> Iterator[dict[str, Any]]:
    """The rows of a table without pictures, one after another, with values as JSON has them.

    Raises:
        UserError: the extra is not installed, or the file is damaged.
        OSError: the file cannot be read.
    """
    with _open_parquet(path) as file:
        for row in _rows(file):
            yield {name: _as_json(value) for name, value in row.items()}


def parquet_samples(path: SourcePath, log: SkipLog, file_log: SkipLog, needed: bool) -> Iterator[PendingSample]:
    """The samples of a file with pictures, one for each row.

    Args:
        path: of the file.
        log: receives, while samples are read, what was left out of them.
        file_log: receives faults of the file.
        needed: whether pictures without a caption are skipped.
    """
    number = 0
    try:
        with _open_parquet(path) as file:
            if not (column := picture_column(file.schema_arrow)):
                raise DamagedParquet(path, f"no column has pictures; expected one of {', '.join(PICTURE_COLUMNS)}")
            for row in _rows(file):
                yield f"{path}:{number}", partial(_pair_of_row, path, number, row, column, log, needed)
                number += 1
    except DamagedParquet as error:
        file_log.add(str(path), f"damaged Parquet file: {error.reason}, after {number} rows")
    except (OSError, ValueError, MemoryError) as error:
        reason = f"unreadable Parquet file: {error}, after {number} rows"
        file_log.add(str(path), reason, may_be_read_later=may_be_read_later(error))


def _pair_of_row(path: SourcePath, number: int, row: dict[str, Any], column: str, log: SkipLog, needed: bool) -> Pair:
    """One sample.

    Raises:
        UnusableSample: it cannot be used.
    """
    fields = {name: _as_json(value) for name, value in row.items() if name != column}
    read = _picture_reader(path, row[column], fields)
    note = partial(log.note, f"{path}:{number}")
    try:
        captions, details = captions_from_fields(fields, note=note)
    except UnusableSample as reason:
        if needed:
            raise
        note(str(reason))
        captions, details = [], {}
    names = {name.lower(): name for name in details}
    keys = [details[names[name]] for name in KEY_COLUMNS if name in names]
    key = next((value for value in keys if value and isinstance(value, str)), f"{path.stem}:{number}")
    if split := SPLIT_IN_NAME.match(path.name):
        details.setdefault("split", split[1])
    return make_pair(key, captions, details, read, needed)


def _picture_reader(path: SourcePath, value: Any, fields: dict[str, Any]) -> Callable[[], bytes]:
    """What reads the bytes of a picture.

    Raises:
        UnusableSample: the row has none.
    """
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is not None:
        return lambda: content
    status = fields.get("status")
    if isinstance(status, str) and status.startswith("failed"):  # of img2dataset
        raise UnusableSample(f"{status.replace('_', ' ')}: {fields.get('error_message')}")
    if not name or not isinstance(name, str):
        raise UnusableSample("no picture: the row holds no bytes")
    return lambda: read_bytes(path.parent / name)


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(ROWS_AT_ONCE):
        yield from batch.to_pylist()


@contextmanager
def _open_parquet(path: SourcePath) -> Iterator[Any]:
    """Open a file as a `ParquetFile`.

    Raises:
        UserError: the extra is not installed, or the file is damaged.
        OSError: the file cannot be read.
    """
    check_parquet()
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with open_source(path) as content:
        try:
            yield ParquetFile(content, pre_buffer=False, buffer_size=BUFFER_BYTES)
        except pa.ArrowException as error:
            raise DamagedParquet(path, " ".join(str(error).split())) from error


def _looked_at(path: SourcePath, look: Callable[[Any], T]) -> T:
    """What a function finds in the end of a file, of which the rest is not read if that can be avoided."""
    if isinstance(path, RemotePath) and parquet_installed():
        from pyarrow.parquet import ParquetFile

        with suppress(Exception), path.open() as content:  # whatever is wrong shows when the whole file is read
            return look(ParquetFile(content))
    with _open_parquet(path) as file:
        return look(file)


def _as_json(value: Any) -> Any:
    """A value as JSON has it: bytes and what is not finite are None, dates and other values text."""
    if isinstance(value, dict):
        return {str(name): _as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return None if isinstance(value, bytes) else str(value)
