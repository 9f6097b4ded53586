"""Art that scenes are composed of: squares of one colour each."""

import numpy as np

from dalle_mini_impl.config.scenes import LANGUAGES
from dalle_mini_impl.data.entries import PictureEntry
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.scenes.composer import scene_art

SHADES = {name: (20 * (number + 1), 90, 250 - 20 * number) for number, name in enumerate("abcdefgh")}
"""Concept -> colour of its drawing, a square of 16 pixels in a frame of 32."""


def entry(concept, vendor, **details):
    captions = [
        Caption(text, language) for language in LANGUAGES for text in (concept, f"{concept}, style of {vendor}")
    ]
    details = {"concept": concept, "vendor": vendor, "kind": "plain", "group": "Objects", **details}
    return PictureEntry(f"{vendor}-{concept}", "train", True, tuple(captions), details)


def make_art(*entries, original_placement=0.0):
    entries = entries or [entry(name, vendor) for vendor in ("x", "y") for name in SHADES]
    pixels = np.zeros((len(entries), 32, 32, 4), np.uint8)
    for row, one in enumerate(entries):
        pixels[row, 8:24, 8:24] = (*SHADES.get(one.details["concept"], (9, 9, 9)), 255)
    return scene_art(
        PictureStore(pixels, np.arange(len(entries)), list(entries)), original_placement=original_placement
    )
