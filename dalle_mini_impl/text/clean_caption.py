"""What a caption says, without the marks that end a sentence: `a duck.` and `a duck!` are `a duck`.

The one rule for captions that are read, trained on, ranked by and drawn. Most captions end without a mark, so one at
the end of a prompt would be something that a model has hardly seen.
"""

import re

MARKS = ".!。！．｡︒﹒﹗…‥⋯․‼।॥۔።։។။᠃᠉"
"""Full stops, exclamation marks and ellipses. A question mark is none: `what` is another caption than `what?`."""
SPACES = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028"
    "\u2029\u202f\u205f\u3000\xad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)
"""White space and characters without any width."""
QUOTES = {
    '"': '"', "＂": "＂", "”": "“„”", "“": "„", "»": "«»", "«": "»", "›": "‹", "‹": "›", "’": "‘‚", "‘": "‚", "'": "'",
    "」": "「", "』": "『", "〞": "〝", "〟": "〝",
}  # fmt: skip
"""Closing quotation mark -> what may open it."""
APOSTROPHES = "'’"
"""Closing quotation marks that can also end a word, as in `the dogs'`."""
INITIALS = re.compile(rf"(?<!\w)((?:([^\W\d_])\2?\.[ \xa0]?)+([^\W\d_])\3?\.)[{re.escape(MARKS + SPACES)}]*$")
"""Letters, single or doubled, with a full stop each at the end of a text, as in `U.S.A.`, `E. T.` or `EE. UU.`; the
stops belong to them."""
LONGEST_INITIALS = 64
"""Characters at the end of a text among which initials are looked for."""
MAX_LAYERS = 8
"""Marks within quotation marks within marks …: how many layers are removed at most."""


def clean_caption(text: str) -> str:
    """A caption without full stops, exclamation marks and ellipses at its end, spaces around it, and quotation marks
    around all of it.

    Marks inside a caption stay, as in `St. Nicholas`, `3.5` or `a cat, 3d`, and so do those of initials (`U.S.A.`),
    question marks, quotation marks around a part, and texts that have nothing else (`!`).
    """
    stripped = cleaned = text.strip(SPACES)
    for _ in range(MAX_LAYERS):
        shorter = _without_last_layer(cleaned)
        if shorter == cleaned:
            break
        cleaned = shorter
    return cleaned or stripped


def _without_last_layer(text: str) -> str:
    """A text without the marks at its end, or else without quotation marks that are not part of it."""
    if not text or (text[-1] not in MARKS and text[-1] not in QUOTES and text[0] != "¡"):
        return text
    text = _without_marks(text).lstrip("¡" + SPACES)
    if text[-1:] not in QUOTES or not text:
        return text
    closing, openings = text[-1], QUOTES[text[-1]]
    inner = _without_marks(text[:-1])
    opened = any(mark in inner for mark in openings if mark != closing)
    opened = opened or (closing in openings and inner.count(closing) % 2 == 1)
    if not opened:
        is_part = closing in APOSTROPHES or (closing == '"' and inner[-1:].isdigit())  # the dogs', 27"
        return text if is_part else inner
    if inner[0] in openings and not any(mark in inner[1:] for mark in closing + openings):
        return inner[1:].lstrip(SPACES)
    return inner + closing


def _without_marks(text: str) -> str:
    initials = INITIALS.search(text[-LONGEST_INITIALS:])
    if initials is not None:
        return text[: len(text) - len(initials[0]) + len(initials[1])]
    return text.rstrip(MARKS + SPACES)
