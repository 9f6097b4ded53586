"""Fonts for texts that are written into pictures, since Pillow's own has hardly more than the letters of English."""

import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "FreeSans.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
    "Kohinoor.ttc",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
)
"""File names of common fonts of Linux, macOS and Windows, which Pillow looks for where each system keeps its fonts."""
PLAIN_LETTERS = {
    **{"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"},
    **{"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "ŋ": "n", "ħ": "h", "–": "-", "„": '"'},
}
"""For characters that Unicode does not take apart into a plain letter and a mark."""
MARKS = ("Mn", "Me", "Cf")
"""Categories of Unicode: accents and other marks, and what changes the character before it."""
NO_CHARACTER = "\uffff"
"""Drawn as what a font has for characters it lacks."""


def label_font(text: str, size: int) -> tuple[FreeTypeFont, str]:
    """The font that has most characters of a text: Pillow's own where it will do, else one of the machine.

    Args:
        text: what is to be written; it may be cut, and end in an ellipsis.
        size: in pixels.

    Returns:
        The font, and the text with plain letters (`e` for `é`) in place of those that the font lacks. Other characters
        stay, and are drawn as boxes.
    """
    text = unicodedata.normalize("NFC", text)
    chars = set(text) | {"…"}
    path = ""
    if not text.isascii():
        path = min(("", *_font_files()), key=lambda file: sum(not _has(file, char) for char in chars))
    plain = {ord(char): _plain_letters(char) for char in chars if not char.isascii() and not _has(path, char)}
    return _open(path, size), text.translate(plain)


def label_baseline(size: int) -> int:
    """How far below the top of a label its letters stand, in pixels, whatever its font."""
    return _open("", size).getmetrics()[0]


@cache
def _font_files() -> tuple[str, ...]:
    """Paths of the fonts that this machine has."""
    names = list(SYSTEM_FONTS)
    if (matplotlib := find_spec("matplotlib")) and matplotlib.origin:
        names.append(str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    found = []
    for name in names:
        try:
            found.append(str(Path(str(ImageFont.truetype(name, 10).path)).resolve()))
        except OSError:
            continue
    return tuple(found)


@cache
def _open(path: str, size: int, layout: ImageFont.Layout | None = None) -> FreeTypeFont:
    """A font file at a size; with the path "" Pillow's own font."""
    font = ImageFont.truetype(path, size, layout_engine=layout) if path else ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)
    return font


@cache
def _has(path: str, char: str) -> bool:
    font = _open(path, 16, ImageFont.Layout.BASIC)  # the other engine draws marks with a circle, and replaces some
    return bytes(font.getmask(char)) != bytes(font.getmask(NO_CHARACTER))


def _plain_letters(char: str) -> str:
    """ASCII letters for one with marks, nothing for a mark alone; the character itself where there are none."""
    if char in PLAIN_LETTERS:
        return PLAIN_LETTERS[char]
    parts = unicodedata.normalize("NFKD", char)
    letters = "".join(part for part in parts if unicodedata.category(part) not in MARKS)
    return letters if letters.isascii() else char
