r"""Reads the rows of JSONL, CSV, TSV and Parquet files, one after another.

A row that cannot be used never hides those after it.
Lines end in `\n`, `\r\n` or `\r`. The encoding is UTF-8, or UTF-16 with a byte order mark.
"""

import csv
import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from dalle_mini_impl.data.pair import Caption, SkipLog
from dalle_mini_impl.data.parquet_reader import is_parquet, parquet_rows
from dalle_mini_impl.data.remote import RemotePath, SourcePath, open_source
from dalle_mini_impl.data.sample import (
    CAPTION_FIELDS,
    CAPTION_IN_LANGUAGE,
    OTHER_CAPTION_FIELDS,
    UnusableSample,
    captions_from_fields,
    load_json,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import picture_kind
from dalle_mini_impl.util.text import encoding_of

TABLE_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
"""File name endings of tables, in lower case."""
PATH_FIELDS = (
    "path", "image", "file_name", "filepath", "file_path", "filename", "image_path", "image_file", "image_name",
    "img_path", "img", "file", "picture",
)  # fmt: skip
"""Fields of a row that may hold the picture's path, in any case; the first one that is not empty counts."""
URL_FIELDS = ("url", "image_url", "img_url", "coco_url")
"""Fields of tables whose pictures have yet to be downloaded."""
DELIMITERS = (",", "\t", ";", "|")
"""What may separate the fields of a line; the one that makes the known column names appear is taken."""
MAX_LINE_CHARACTERS = 1 << 24
"""Longest line that is read; a longer one is skipped."""
MAX_FIELD_LINES = 50
"""Most lines that a quoted field of a CSV file may go on over."""
MAX_FIELD_CHARACTERS = 1 << 20
"""Most characters of these lines together."""
MAX_TABLE_BYTES = 1 << 34
"""Largest table that is read."""
LOCAL_PICTURES = "pictures must be local; download them, for example with img2dataset, which writes tars"
"""What to do with a table of addresses."""

Row = tuple[str, dict[str, Any] | UnusableSample]
"""File and line number, for messages, and the row's fields or the reason why it cannot be used."""
Line = tuple[int, str | None]
"""Number of a line, from 1, and its text without its end; None if it is longer than `MAX_LINE_CHARACTERS`."""


def read_rows(table: SourcePath, captions_needed: bool = True) -> Iterator[Row]:
    """Read the rows of a table.

    Args:
        table: path of the file.
        captions_needed: whether a CSV or TSV file must have a column for captions.

    Raises:
        UserError: it is no regular file, too large, in another encoding, a CSV or TSV file without known columns, or a
            damaged Parquet file, or the extra that reads these is not installed.
        OSError: it cannot be read.
    """
    if is_parquet(table):
        yield from ((f"{table}:{number}", fields) for number, fields in enumerate(parquet_rows(table)))
        return
    with _open_text(table) as text:
        lines = _lines(text)
        yield from (
            _jsonl_rows(table, lines)
            if table.suffix.lower() == ".jsonl"
            else _delimited_rows(table, lines, captions_needed)
        )


@contextmanager
def _open_text(table: SourcePath) -> Iterator[TextIO]:
    with open_source(table) as file:
        size = file.seek(0, io.SEEK_END)
        if size > MAX_TABLE_BYTES:
            raise UserError(f"expected {table} to have at most {MAX_TABLE_BYTES} bytes, got {size}; divide it")
        file.seek(0)
        start = file.read(4096)
        file.seek(0)
        encoding = encoding_of(start[:4])
        if encoding == "utf-8" and start.count(0) > len(start) // 4:
            raise UserError(
                f"expected {table} to be text in UTF-8, or UTF-16 with a byte order mark, got NUL bytes; "
                "save it as UTF-8"
            )
        # Bytes that are not UTF-8 become surrogates, which make one row unusable and not the whole file.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        yield io.TextIOWrapper(file, encoding, errors, newline="")


def _lines(text: TextIO) -> Iterator[Line]:
    number = 0
    try:
        while line := text.readline(MAX_LINE_CHARACTERS):
            number += 1
            if len(line) < MAX_LINE_CHARACTERS:
                yield number, line.rstrip("\r\n")
                continue
            while line and line[-1] not in "\r\n":
                line = text.readline(MAX_LINE_CHARACTERS)
            yield number, None
    except UnicodeDecodeError:  # of UTF-16: a character is cut off
        yield number + 1, "\udcff"


def _too_long(number: int) -> UnusableSample:
    return UnusableSample(f"malformed line: number {number} has more than {MAX_LINE_CHARACTERS} characters")


def _jsonl_rows(table: SourcePath, lines: Iterator[Line]) -> Iterator[Row]:
    for number, line in lines:
        where = f"{table}:{number}"
        if line is None:
            yield where, _too_long(number)
        elif line.strip():
            try:
                line.encode()  # raises where invalid bytes became surrogates
                fields = load_json(line)
            except UnicodeEncodeError:
                yield where, UnusableSample("caption not UTF-8: invalid bytes")
            except ValueError as error:
                yield where, UnusableSample(f"malformed line: {error}")
            else:
                yield where, fields if isinstance(fields, dict) else UnusableSample("malformed line: not a JSON object")


def _delimited_rows(table: SourcePath, lines: Iterator[Line], captions_needed: bool) -> Iterator[Row]:
    number, first = next(lines, (0, ""))
    if not number:
        return
    if (first or "").lower().startswith("sep="):  # written by spreadsheets
        number, first = next(lines, (2, ""))
    if first is None or "\0" in first:
        raise UserError(f"expected {table} to be text in UTF-8, or UTF-16 with a byte order mark; save it as UTF-8")
    format = _detect_format(table, first, captions_needed)
    waiting: deque[Line] = deque()
    while line := waiting.popleft() if waiting else next(lines, None):
        number, text = line
        where = f"{table}:{number}"
        if text is None:
            yield where, _too_long(number)
        elif text:
            fields = format.split(text)
            following: list[Line] = []
            if isinstance(fields, _OpenQuote):
                following, fields = _join_lines(text, lines, waiting, format)
            waiting.extendleft(reversed(following))
            yield where, _row(format.header, fields) if isinstance(fields, list) else fields


class _OpenQuote(UnusableSample):
    """A quoted field does not end on its line."""


@dataclass(frozen=True)
class _TableFormat:
    """How the lines of a CSV or TSV file are divided."""

    header: list[str]
    """Names of the columns, in lower case."""
    split: Callable[[str], list[str] | UnusableSample]
    """Divides a line into fields."""
    is_row: Callable[[str], bool]
    """Whether a line looks like a row of its own: it has a picture's path where the path is expected."""


def _detect_format(table: SourcePath, first: str, captions_needed: bool) -> _TableFormat:
    names = {
        delimiter: [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in _header(first, delimiter)]
        for delimiter in DELIMITERS
    }
    usable = [delimiter for delimiter in DELIMITERS if _has_path(names[delimiter])]
    complete = [delimiter for delimiter in usable if not captions_needed or _has_caption(names[delimiter])]
    if not complete:
        columns = max(names.values(), key=len)
        shown = ", ".join(columns) if any(columns) else "(none)"
        if not _has_path(columns) and set(columns) & set(URL_FIELDS):
            raise UserError(f"{table} has addresses in its columns {shown}, expected paths; {LOCAL_PICTURES}")
        raise UserError(
            f"{table} starts with the columns {shown[:500]}; expected a first line "
            f"naming one of {', '.join(PATH_FIELDS)} and one of {', '.join(CAPTION_FIELDS)}; add it"
        )
    delimiter = max(complete, key=lambda delimiter: len(names[delimiter]))
    header = names[delimiter]
    quotes = not (table.suffix.lower() == ".tsv" and delimiter == "\t")
    path_column = next(header.index(name) for name in PATH_FIELDS if name in header)

    def split(line: str) -> list[str] | UnusableSample:
        return _split_quoted(line, delimiter) if quotes else [_unquoted(field) for field in line.split(delimiter)]

    def is_row(line: str) -> bool:
        fields = line.split(delimiter)
        name = fields[path_column].strip(' "') if len(fields) > path_column else ""
        is_picture = bool(name) and picture_kind(name) != "other"
        # At an address, a question for each line would take too long.
        return is_picture or (bool(name) and not isinstance(table, RemotePath) and os.path.isfile(table.parent / name))

    return _TableFormat(header, split, is_row)


def _has_path(header: list[str]) -> bool:
    return not set(header).isdisjoint(PATH_FIELDS)


def _has_caption(header: list[str]) -> bool:
    return any(
        name in CAPTION_FIELDS or name in OTHER_CAPTION_FIELDS or CAPTION_IN_LANGUAGE.fullmatch(name) for name in header
    )


def _header(line: str, delimiter: str) -> list[str]:
    fields = _split_quoted(line, delimiter)
    return fields if isinstance(fields, list) else [_unquoted(field) for field in line.split(delimiter)]


def _split_quoted(line: str, delimiter: str) -> list[str] | UnusableSample:
    """Divide a line, or lines that a quoted field joins, as CSV."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        rows = list(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return _OpenQuote("malformed line: a quote is opened and not closed on its line")
        return UnusableSample(f"malformed line: {error}")
    return rows[0] if len(rows) == 1 else UnusableSample("malformed line: more than one row")


def _unquoted(field: str) -> str:
    """A field of a format without quoting; a whole field in quotes, as spreadsheets write it, is without them."""
    inner = field[1:-1]
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else field


def _join_lines(
    text: str, lines: Iterator[Line], waiting: deque[Line], format: _TableFormat
) -> tuple[list[Line], list[str] | UnusableSample]:
    """Look for the line on which a quoted field ends, unless a line before it is a row of its own.

    Returns:
        The lines that were looked at and belong to other rows, and the fields or the reason why there are none.
    """
    taken: list[Line] = []
    parts = [text]
    characters = len(text)
    while len(parts) < MAX_FIELD_LINES and characters < MAX_FIELD_CHARACTERS:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            break
        taken.append(line)
        if line[1] is None or format.is_row(line[1]):
            break
        parts.append(line[1])
        characters += len(line[1])
        # Only a line with a quote can end the field.
        if '"' in line[1]:
            fields = format.split("\n".join(parts))
            if not isinstance(fields, UnusableSample):
                return [], fields
            if not isinstance(fields, _OpenQuote):
                break
    return taken, UnusableSample("malformed line: a quote is opened and not closed before the next row")


def _row(header: list[str], row: list[str]) -> dict[str, Any] | UnusableSample:
    if len(row) > len(header):
        return UnusableSample("malformed line: more fields than columns; a caption with the separator needs quotes")
    fields: dict[str, Any] = {}
    for name, text in zip(header, row, strict=False):
        if text and name in fields:  # several columns of one name, as of captions
            known = fields[name]
            fields[name] = [*(known if isinstance(known, list) else [known]), text]
        elif text:
            fields[name] = text
    return fields


@dataclass(frozen=True)
class TablePicture:
    """What the rows of one picture say."""

    where: str
    """File and number of the first row, for messages."""
    details: dict[str, Any]
    """Fields of the first row besides path and captions."""
    captions: list[Caption]
    """Of all rows."""


def join_rows(
    table: SourcePath, log: SkipLog, captions_needed: bool
) -> tuple[dict[str, TablePicture], list[tuple[str, str]]]:
    """Join the rows of each picture; one row per caption is common.

    Args:
        table: path of the file.
        log: receives what was left out of rows that are used.
        captions_needed: whether rows without a usable caption are refused.

    Returns:
        Path of each picture as it stands in the table -> what is said of it; and where and why rows cannot be used.

    Raises:
        UserError, OSError: as `read_rows`.
    """
    pictures: dict[str, TablePicture] = {}
    refused: list[tuple[str, str]] = []
    for where, fields in read_rows(table, captions_needed):
        try:
            if isinstance(fields, UnusableSample):
                raise fields
            field, name = path_of_row(fields)
            fields = {name: value for name, value in fields.items() if name not in (field, *PATH_FIELDS[:3])}
            captions, details = _captions_of_row(fields, partial(log.note, where), captions_needed)
        except UnusableSample as reason:
            refused.append((where, str(reason)))
        else:
            pictures.setdefault(name, TablePicture(where, details, [])).captions.extend(captions)
    return pictures, refused


def _captions_of_row(
    fields: dict[str, Any], note: Callable[[str], object], needed: bool
) -> tuple[list[Caption], dict[str, Any]]:
    try:
        return captions_from_fields(fields, note=note)
    except UnusableSample as reason:
        if needed:
            raise
        note(str(reason))
        return [], {}


def path_of_row(fields: dict[str, Any]) -> tuple[str, str]:
    """The field with the picture's path and its value.

    Raises:
        UnusableSample: there is none, or it is an address.
    """
    names = {name.lower(): name for name in fields}
    for known in PATH_FIELDS:
        value = fields.get(names.get(known, ""))
        if value:
            if not isinstance(value, str):
                break
            if value.startswith(("http://", "https://")):
                raise UnusableSample(f"not local: an address where a path was expected; {LOCAL_PICTURES}")
            return names[known], value
    if not names.keys().isdisjoint(URL_FIELDS):
        raise UnusableSample(f"not local: an address and no path; {LOCAL_PICTURES}")
    raise UnusableSample(f"no path: expected one of {', '.join(PATH_FIELDS)}")
