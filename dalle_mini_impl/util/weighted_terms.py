r"""Prompt terms with numbers behind colons, such as `a cat:0.5` or `photo.png:2`."""

import math
import re
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS

MINUS_SIGNS = "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
"""What word processors and keyboards put in the place of `-`: hyphens, dashes and the mathematical minus."""
NUMBER_BEHIND_COLON = re.compile(r"(?s)(.*)(?<!\\)[:\uff1a]\s*([^:\uff1a]*)")
NUMBER = re.compile(r"([+-]?)\s*(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?\s*(%?)", re.IGNORECASE)
ALMOST_A_NUMBER = re.compile(r"(?=.*\d)[\d\s.,+\-%/*×^'_e()]+", re.IGNORECASE)
"""Text that a reader takes for a number, such as `--1`, `1/2` or `1.000,5`."""
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""A comma that may divide thousands as well as decimals."""
ESCAPED = re.compile(r"\\([:|\uff1a])")


def split_term(term: str, max_numbers: int = 1) -> tuple[str | Path, list[float]]:
    r"""Split a term into its text or picture path and the numbers behind it.

    Args:
        term: text, or a path if it ends like a picture file, then up to `max_numbers` numbers, each behind a colon:
            `-0.3`, `.5`, `1e3`, `0,5` or `50%`, also with a typographic minus sign or with spaces around it. A colon
            with anything else behind it belongs to the text, as does `\:`; `\|` is a bar.
        max_numbers: how many numbers may be split off; colons and numbers before them stay in the text.

    Returns:
        The text or path, and the numbers in the order written.

    Raises:
        UserError: what is behind a colon looks like a number and is none, has two readings, or is too large.
    """
    numbers: list[float] = []
    while len(numbers) < max_numbers and (match := NUMBER_BEHIND_COLON.fullmatch(term)):
        number = _parse_number(match[2])
        if number is None:
            break
        term = match[1].rstrip()
        numbers.insert(0, number)
    content = ESCAPED.sub(r"\1", term)
    is_picture = any(content.lower().endswith(ending) for ending in PICTURE_ENDINGS)
    return Path(content) if is_picture else content, numbers


def _parse_number(text: str) -> float | None:
    """The number that a text is, None if it does not look like one."""
    plain = text.strip().translate(dict.fromkeys(map(ord, MINUS_SIGNS), "-"))
    match = NUMBER.fullmatch(plain)
    value = math.nan
    if match and not THOUSANDS.fullmatch(plain):
        value = float(f"{match[1]}{match[2].replace(',', '.')}{match[3] or ''}") / (100 if match[4] else 1)
    elif not ALMOST_A_NUMBER.fullmatch(plain):
        return None
    if not math.isfinite(value):
        raise UserError(
            f"expected a number such as -0.3 or 50% behind the colon, got {text.strip()!r}; correct it, or write \\: "
            f"for a colon of the text"
        )
    return value
