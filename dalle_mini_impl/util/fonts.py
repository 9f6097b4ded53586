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
    "ß": "ss",
    "æ": "ae",
    "Æ": "Ae",
    "œ": "oe",
    "Œ": "Oe",
    "ø": "o",
    "Ø": "O",
    "ł": "l",
    "Ł": "L",
    "đ": "d",
}
"""For letters that no font has and that are not a plain letter with a mark, which is left out."""
NO_CHARACTER = "\uffff"
"""Drawn as what a font has for characters it lacks."""


def label_font(text: str, size: int) -> tuple[FreeTypeFont, str]:
    """The font that has most characters of a text: Pillow's own where it will do, else one of the system.

    Args:
        text: what is to be written.
        size: in pixels.

    Returns:
        The font, and the text with plain letters (`e` for `é`) in place of those that the font lacks. Other characters
        stay, and are drawn as boxes.
    """
    special = {char for char in text if not char.isascii()}
    path = ""
    if special:
        path = min(("", *_font_files()), key=lambda file: sum(not _has(file, char) for char in special))
    plain = {ord(char): _plain_letters(char) for char in special if not _has(path, char)}
    return _open(path, size), text.translate(plain)


@cache
def _font_files() -> tuple[str, ...]:
    """Paths of the fonts that this machine has."""
    names = list(SYSTEM_FONTS)
    if (matplotlib := find_spec("matplotlib")) and matplotlib.origin:
        names.insert(1, str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    found = []
    for name in names:
        try:
            found.append(str(ImageFont.truetype(name, 10).path))
        except OSError:
            continue
    return tuple(found)


@cache
def _open(path: str, size: int) -> FreeTypeFont:
    """A font file at a size; with the path "" Pillow's own font."""
    font = ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)
    return font


@cache
def _has(path: str, char: str) -> bool:
    font = _open(path, 16)
    return bytes(font.getmask(char)) != bytes(font.getmask(NO_CHARACTER))


def _plain_letters(char: str) -> str:
    """ASCII letters for one with marks; the character itself where there are none."""
    letters = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
    return PLAIN_LETTERS.get(char, letters if letters.isascii() and letters else char)
