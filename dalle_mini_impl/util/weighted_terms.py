r"""Prompt terms with numbers behind colons, such as `a cat:0.5` or `photo.png:2`."""

import re
from pathlib import Path

from dalle_mini_impl.util.images import PICTURE_ENDINGS

TRAILING_NUMBER = re.compile(r"(?s)(.*)(?<!\\):([+-]?(?:\d+\.?\d*|\.\d+))")
ESCAPED = re.compile(r"\\([:|])")


def split_term(term: str, max_numbers: int = 1) -> tuple[str | Path, list[float]]:
    r"""Split a term into its text or picture path and the numbers behind it.

    Args:
        term: text, or a path if it ends like a picture file, then up to `max_numbers` numbers, each right behind a
            colon. A colon without a number right behind it belongs to the text, as does `\:`; `\|` is a bar.
        max_numbers: how many numbers may be split off; colons and numbers before them stay in the text.

    Returns:
        The text or path, and the numbers in the order written.
    """
    numbers: list[float] = []
    while len(numbers) < max_numbers and (match := TRAILING_NUMBER.fullmatch(term)):
        term = match[1]
        numbers.insert(0, float(match[2]))
    content = ESCAPED.sub(r"\1", term)
    is_picture = any(content.lower().endswith(ending) for ending in PICTURE_ENDINGS)
    return Path(content) if is_picture else content, numbers
