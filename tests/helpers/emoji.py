"""A small set of captioned pictures in the form of the emoji set."""

from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini_impl.data.emoji.art import VENDORS
from dalle_mini_impl.data.emoji.build import EmojiSet, write_set
from dalle_mini_impl.data.emoji.captions import LANGUAGES as ALL_LANGUAGES


def make_emoji_set(folder: Path) -> Path:
    """A set of 12 emoji by the first two vendors, each a square."""
    emojis = [chr(0x1F400 + number) for number in range(12)]
    pixels = np.zeros((12, 2, 32, 32, 4), np.uint8)
    for number in range(12):
        for vendor in range(2):
            pixels[number, vendor, 6:26, 6:26] = (20 * number, 200 * vendor, 90, 255)
    write_set(
        folder,
        EmojiSet(
            table={one: {"name": f"animal {n}", "group": "Animals & Nature"} for n, one in enumerate(emojis)},
            vendors=VENDORS[:2],
            pictures={
                (one, VENDORS[v].name): Image.fromarray(pixels[n, v], "RGBA")
                for n, one in enumerate(emojis)
                for v in range(2)
            },
            annotations={
                language: {one: (f"{language} {n}", []) for n, one in enumerate(emojis)} for language in ALL_LANGUAGES
            },
            sources=[],
        ),
        32,
    )
    return folder
