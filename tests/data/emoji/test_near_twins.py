"""Near twins of held-out pictures are found, marked and left out of training."""

import numpy as np
import pytest
from PIL import Image

from dalle_mini_impl.data.emoji.near_twins import mark_near_twins, psnr_on_white


def flat(value, alpha=255, side=128):
    return Image.new("RGBA", (side, side), (value, value, value, alpha))


def record(vendor, split, emoji="🐈"):
    return {"emoji": emoji, "vendor": vendor, "split": split}


def mark(vendors, leave_out=True, emoji="🐈"):
    records = [record(name, split, emoji) for name, (split, _) in vendors.items()]
    pictures = {(emoji, name): flat(value) for name, (_, value) in vendors.items()}
    return {r["vendor"]: r for r in records}, mark_near_twins(records, pictures, leave_out=leave_out)


def test_difference_is_measured_on_white():
    assert psnr_on_white(flat(200), flat(200)) == np.inf
    assert psnr_on_white(flat(200), flat(225)) == pytest.approx(20 * np.log10(255 / 25), abs=1e-4)
    # What is under transparency is not seen.
    assert psnr_on_white(flat(0, alpha=0), flat(255)) == np.inf
    assert psnr_on_white(flat(90, side=64), flat(90, side=256)) == np.inf


def test_training_picture_near_a_held_out_one_is_left_out():
    # 25.5 apart is exactly 20 dB; 25 is nearer, 26 is farther.
    vendors = {"a": ("validation", 100), "b": ("train", 125), "c": ("train", 126), "d": ("train", 74)}
    records, counts = mark(vendors)
    assert {name: r["split"] for name, r in records.items()} == {
        "a": "validation",
        "b": "unused",
        "c": "train",
        "d": "train",
    }
    assert records["a"]["near_twins"] == ["b"]
    assert records["b"]["near_twins"] == ["a"]
    assert "near_twins" not in records["c"]
    assert records["a"]["twin_free"]
    assert "twin_free" not in records["b"]
    assert counts == {"pairs": 1, "held_out": 1, "training": 1, "left_out": 1, "twin_free": 1}


def test_twins_are_only_marked_where_they_are_kept():
    records, counts = mark({"a": ("validation", 100), "b": ("train", 100), "c": ("train", 0)}, leave_out=False)
    assert records["b"]["split"] == "train"
    assert not records["a"]["twin_free"]
    assert counts == {"pairs": 1, "held_out": 1, "training": 1, "left_out": 0, "twin_free": 0}


def test_last_training_picture_of_an_emoji_stays():
    vendors = {"a": ("validation", 100), "b": ("train", 100), "c": ("train", 101)}
    records, counts = mark(vendors)
    assert [records[name]["split"] for name in "abc"] == ["validation", "train", "unused"]
    assert not records["a"]["twin_free"]
    assert counts["left_out"] == 1


def test_pictures_on_one_side_of_the_split_or_of_other_emoji_are_no_twins():
    records = [record("a", "validation"), record("b", "validation"), record("a", "train", "🐕")]
    pictures = {(r["emoji"], r["vendor"]): flat(7) for r in records}
    counts = mark_near_twins(records, pictures, leave_out=True)
    assert counts == {"pairs": 0, "held_out": 0, "training": 0, "left_out": 0, "twin_free": 2}
    assert [r["split"] for r in records] == ["validation", "validation", "train"]
