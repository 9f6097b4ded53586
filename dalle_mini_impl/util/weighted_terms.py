"""Prompts as they are typed: numbers behind colons, and names of pictures among texts."""

import re
from pathlib import Path

from dalle_mini_impl.util.images import PICTURE_ENDINGS

NUMBER = re.compile(r"(?s)(.*)(?<!\\):([+-]?(?:\d+\.?\d*|\.\d+))")
ESCAPED = re.compile(r"\\([:|])")


def read_term(word: str, most: int = 1) -> tuple[str | Path, list[float]]:
    r"""Read a text or a picture's name with numbers behind it, such as `a cat:0.5`.

    Args:
        word: a name that ends like a picture file is a path. Numbers stand right behind colons; `\:` is a colon of the
            text, and so is one with anything but a number behind it. `\|` is a bar.
        most: how many numbers to take off at most.

    Returns:
        The text or path, and the numbers in their order.
    """
    numbers: list[float] = []
    while len(numbers) < most and (match := NUMBER.fullmatch(word)):
        word = match[1]
        numbers.insert(0, float(match[2]))
    name = ESCAPED.sub(r"\1", word)
    is_picture = any(name.lower().endswith(ending) for ending in PICTURE_ENDINGS)
    return Path(name) if is_picture else name, numbers
