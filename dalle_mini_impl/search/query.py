"""Queries as they are typed: terms with signs between them and weights behind them."""

from collections.abc import Sequence

from dalle_mini_impl.search.index import Term
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.weighted_terms import split_term

SIGNS = {"+": 1.0, "-": -1.0}


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
            name, numbers = split_term(word)
            terms.append((name, SIGNS.get(sign, 1.0) * (numbers or [1.0])[0]))
            sign = ""
    if sign:
        raise UserError(f"the query ends with {sign!r}; expected a text or a picture behind it")
    return terms
