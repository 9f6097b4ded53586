"""Icons are matched to emoji by name."""

import pytest

from dalle_mini_impl.data.emoji.art import VENDORS
from dalle_mini_impl.data.emoji.icon_names import CORRECTIONS, fold_name, match_icons

TABLE = {
    emoji: {"name": name}
    for emoji, name in {
        "🐱": "cat face", "🐈": "cat", "🍆": "eggplant", "🦊": "fox", "🔫": "water pistol", "🤖": "robot",
        "👞": "man’s shoe", "🥇": "1st place medal", "🎱": "pool 8 ball", "#️⃣": "keycap #", "*️⃣": "keycap *",
    }.items()
}  # fmt: skip


@pytest.mark.parametrize(
    ("vendor", "icon", "emoji"),
    [
        ("noto-v1", "cat-face", "🐱"),
        ("noto-v1", "cat", "🐈"),
        ("fxemoji", "cat", "🐱"),
        ("fxemoji", "catside", "🐈"),
        ("fxemoji", "aubergine", "🍆"),  # the character's name in Unicode
        ("fxemoji", "mensshoe", "👞"),
        ("streamline", "fox-face-2", "🦊"),
        ("streamline", "pool-8-ball", "🎱"),
        ("noto-v1", "1st-place-medal", "🥇"),
    ],
)
def test_icon_is_found_by_name(vendor, icon, emoji):
    assert match_icons([icon], TABLE, vendor) == {emoji: icon}


@pytest.mark.parametrize("icon", ["pistol", "keycap", "cat-face-dark", "7"])
def test_icon_of_another_thing_or_of_several_emoji_fits_none(icon):
    assert match_icons([icon], TABLE, "noto-v1") == {}


def test_first_of_numbered_icons_counts():
    assert match_icons(["robot-face-1", "robot-face-2"], TABLE, "streamline") == {"🤖": "robot-face-1"}


def test_name_of_the_emoji_comes_before_that_of_its_character():
    assert match_icons(["aubergine", "eggplant"], TABLE, "noto-v1") == {"🍆": "eggplant"}


def test_corrections_are_for_added_vendors_and_folded():
    assert set(CORRECTIONS) == {vendor.name for vendor in VENDORS if vendor.added}
    for corrections in CORRECTIONS.values():
        assert all(name == fold_name(name) for name in corrections)
