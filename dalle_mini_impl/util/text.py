"""Makes arbitrary text, such as file names and captions, safe to print and to encode, and reads it from bytes."""

import codecs
import re

CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")
"""Characters that steer a terminal instead of being shown, those that reverse the order of the text around them, and
lone surrogates, which cannot be encoded; line ends and tabs are not among them."""
LINE_END = re.compile("\r\n|\n|\r")
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16, so it is looked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
"""First bytes of a text file -> its encoding; text without any of them is UTF-8."""


def printable(text: str) -> str:
    """One line of valid Unicode that is safe on a terminal.

    Bytes that were not UTF-8 and control characters are shown as escapes; white space becomes single spaces.
    """
    return escape_controls(" ".join(text.encode("utf-8", "backslashreplace").decode().split()))


def escape_controls(text: str) -> str:
    r"""Text with control characters as `\u001b`, which JSON reads as the same text; line ends and tabs stay."""
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def without_surrogates(text: str) -> str:
    """Text with lone surrogates replaced by `?`; the shell passes bytes that are not UTF-8 as such surrogates."""
    return text.encode("utf-8", "replace").decode()


def split_lines(text: str) -> list[str]:
    r"""The lines of a text that end in `\n`, `\r\n` or `\r`.

    `str.splitlines` also splits at U+2028, U+0085 and control characters, which can be part of a caption.
    """
    lines = LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def encoding_of(start: bytes) -> str:
    """Encoding of a text file by its first four bytes: that of its byte order mark, else UTF-8."""
    return next((name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")


def decode_text(content: bytes) -> str:
    """Decode the content of a text file: UTF-8, or UTF-16 and UTF-32 with their byte order mark.

    Raises:
        ValueError: it is in another encoding; the message says at which byte that shows.
    """
    encoding = encoding_of(content[:4])
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "" if encoding.startswith("utf-8") else f"{encoding.upper()}: "
        raise ValueError(f"{name}{error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise ValueError("a NUL character, as UTF-16 without byte order mark has; save it as UTF-8")
    return text
