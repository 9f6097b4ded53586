"""Fonts of texts that are written into pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from dalle_mini_impl.util import fonts
from dalle_mini_impl.util.fonts import label_font
from dalle_mini_impl.util.images import contact_sheet

matplotlib = pytest.importorskip("matplotlib")
FONTS = Path(matplotlib.__file__).resolve().parent / "mpl-data/fonts/ttf"
DEJAVU = FONTS / "DejaVuSans.ttf"
LATIN = FONTS / "cmr10.ttf"


@pytest.fixture
def only(monkeypatch):
    """Sets which fonts the machine has, besides Pillow's own."""
    return lambda *files: monkeypatch.setattr(fonts, "_font_files", lambda: tuple(map(str, files)))


def test_english_is_written_in_pillows_own_font(only):
    only(DEJAVU)
    font, text = label_font("a red heart, 3d", 13)
    assert (font.getname(), font.size, text) == (ImageFont.load_default(13).getname(), 13, "a red heart, 3d")


@pytest.mark.parametrize("text", ["ein schöner Stern", "kjærlighet på øya", "češnja", "сердце", "καρδιά", "قلب"])
def test_other_letters_are_written_in_a_font_that_has_them(only, text):
    only(DEJAVU)
    font, same = label_font(text, 12)
    assert (font.path, font.size, same) == (str(DEJAVU), 12, text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("un fantôme", "un fantome"),
        ("kjærlighet på øya", "kjaerlighet pa oya"),
        ("weiße čašə", "weisse casə"),
        ("ışık – „Đ“", 'isik - "D“'),
        ("e\u0301 \u0301a", "e a"),  # as file names of macOS are, and a mark without its letter
        ("❤\ufe0f", "❤"),
        ("łódź", "lodz"),
        ("红心 é", "红心 e"),
    ],
)
def test_without_such_a_font_letters_lose_their_marks(only, text, plain):
    only()
    font, same = label_font(text, 12)
    assert (font.getname(), same) == (ImageFont.load_default(12).getname(), plain)


@pytest.mark.parametrize("files", [(DEJAVU, LATIN), (LATIN, DEJAVU)])
def test_the_font_that_has_most_characters_is_taken(only, files):
    only(*files)
    font, text = label_font("红 ж é", 12)  # DejaVu has two of the three, the other one
    assert (font.path, text) == (str(DEJAVU), "红 ж é")


def test_english_letters_count_too(only, monkeypatch):
    only(DEJAVU)
    monkeypatch.setattr(fonts, "_has", lambda path, char: char.isascii() != bool(path))
    assert label_font("दिल, 3d, twemoji", 12)[0].getname() == ImageFont.load_default(12).getname()
    assert label_font("लाल दिल, 3d", 12)[0].path == str(DEJAVU)


@pytest.mark.parametrize("char", ["\u0591", "\u093f", "\u0e31"])
def test_marks_that_a_font_lacks_are_not_taken_for_its_own(char):
    assert not fonts._has(str(DEJAVU), char)


def test_fonts_of_the_system_are_found_by_name_and_read_once(monkeypatch):
    asked = []

    def truetype(name, size):
        asked.append(name)
        if name != "NotoSansCJK-Regular.ttc":
            raise OSError(name)
        return real(DEJAVU.name, size)  # found in the current folder

    real = ImageFont.truetype
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    monkeypatch.setattr(ImageFont, "truetype", truetype)
    fonts._font_files.cache_clear()
    try:
        monkeypatch.chdir(FONTS)
        assert fonts._font_files() == fonts._font_files() == (str(DEJAVU),)
        assert asked == list(fonts.SYSTEM_FONTS)
    finally:
        fonts._font_files.cache_clear()


def test_matplotlibs_font_is_found_where_it_is_installed():
    fonts._font_files.cache_clear()
    assert str(DEJAVU) in fonts._font_files()


def test_labels_of_a_sheet_show_their_letters(only):
    only(DEJAVU)
    sheet = contact_sheet([Image.new("RGB", (112, 4), "white")], labels=["čšž"])
    font = ImageFont.truetype(str(DEJAVU), 14)
    expected = np.asarray(font.getmask("čšž")).reshape(font.getmask("čšž").size[::-1])
    ink = 255 - np.asarray(sheet.convert("L"))[9:]
    rows, columns = ink.any(1).nonzero()[0], ink.any(0).nonzero()[0]
    assert np.abs(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(int) - expected).max() <= 1


def test_baselines_of_labels_are_equal(only):
    only(DEJAVU)
    sheet = contact_sheet([Image.new("RGB", (60, 4), "white")] * 2, 2, ["x", "ж"])
    ink = 255 - np.asarray(sheet.convert("L"))[9:]
    bottoms = [half.any(1).nonzero()[0][-1] for half in (ink[:, :64], ink[:, 64:])]
    assert bottoms[0] == bottoms[1]
