"""Queries as they are typed: terms with signs between them and weights behind them."""

import re
from collections.abc import Sequence
from pathlib import Path

from dalle_mini_impl.data.samples import PICTURE_ENDINGS
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.search.index import Term

SIGNS = {"+": 1.0, "-": -1.0}
WEIGHT = re.compile(r"(?s)(.*)(?<!\\):([+-]?(?:\d+\.?\d*|\.\d+))")


def parse_query(words: Sequence[str]) -> list[tuple[Term, float]]:
    r"""Read a query such as `cat + photo.jpg:0.5 - "green grass"`.

    Args:
        words: terms, and signs `+` and `-` that stand alone before a term. A term that ends like a picture file is one.
            A number behind a colon is the term's weight, 1 where there is none; `\:` is a colon of the text.

    Raises:
        UserError: a sign has no term behind it.
    """
    terms: list[tuple[Term, float]] = []
    sign = ""
    for word in words:
        if word in SIGNS and not sign:
            sign = word
        elif word in SIGNS:
            raise UserError(f"{word!r} follows {sign!r}; expected one sign before each text or picture")
        else:
            terms.append(_term(word, SIGNS.get(sign, 1.0)))
            sign = ""
    if sign:
        raise UserError(f"the query ends with {sign!r}; expected a text or a picture behind it")
    return terms


def _term(word: str, sign: float) -> tuple[Term, float]:
    weighted = WEIGHT.fullmatch(word)
    name, weight = (weighted[1], float(weighted[2])) if weighted else (word, 1.0)
    name = name.replace("\\:", ":")
    is_picture = any(name.lower().endswith(ending) for ending in PICTURE_ENDINGS)
    return Path(name) if is_picture else name, sign * weight
