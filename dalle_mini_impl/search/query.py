"""Queries as typed on the command line: terms with signs between them and weights after them."""

from collections.abc import Sequence

from dalle_mini_impl.search.index import Term
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.weighted_terms import split_term

SIGNS = {"+": 1.0, "-": -1.0}


def parse_query(words: Sequence[str]) -> list[tuple[Term, float]]:
    r"""Read a query such as `cat + photo.jpg:0.5 - "green grass"`.

    Args:
        words: terms, and the separate signs `+` and `-` before a term. A term with the suffix of a picture file is a
            path. A number after a colon is the term's weight, 1 if there is none; `\:` is a colon of the text.

    Returns:
        Terms with their weights, in order.

    Raises:
        UserError: a sign is not followed by a term.
    """
    terms: list[tuple[Term, float]] = []
    sign = ""
    for word in words:
        if word in SIGNS and not sign:
            sign = word
        elif word in SIGNS:
            raise UserError(f"expected one sign before each text or picture, got {sign!r} and {word!r}; remove one")
        else:
            name, numbers = split_term(word)
            terms.append((name, SIGNS.get(sign, 1.0) * (numbers or [1.0])[0]))
            sign = ""
    if sign:
        raise UserError(
            f"expected a text or a picture after {sign!r}, got the end of the query; add one, or remove the sign"
        )
    return terms
