"""What every text tokenizer offers, whether trained here or imported with a model, and how captions are cut."""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

MAX_QUOTED_CHARACTERS = 200
"""A warning quotes no more of a caption, so that it stays readable."""
MAX_TOKENIZER_BYTES = 2**26
"""Largest file of a text tokenizer that is read; those of a million ids have about 40 MB."""


class CaptionTokenizer(Protocol):
    """What generating pictures needs of a text tokenizer; `TextTokenizer` and `JsonTokenizer` have it."""

    identity: str
    """Hash of its file."""
    vocab_size: int
    """Number of text ids."""
    eos_id: int
    """Text id that ends a caption, -1 for none."""

    def encode(self, text: str) -> list[int]:
        """Caption -> ids, without padding."""

    def encode_beginning(self, text: str) -> list[int]:
        """Beginning of a caption -> ids, without padding and EOS."""

    def decode(self, text_ids: Sequence[int]) -> str:
        """Ids -> normalised text."""

    def piece(self, text_id: int) -> str:
        """The text that one id stands for; a space may have a symbol of its own."""

    def truncate(self, text_ids: list[int], max_ids: int, text: str = "") -> list[int]:
        """Return the first `max_ids` ids; warns about what was cut off if `text`, the whole caption, is given."""


def truncate_ids(decode: Callable[[list[int]], str], text_ids: list[int], max_ids: int, text: str = "") -> list[int]:
    """Return the first `max_ids` ids of a caption.

    Args:
        decode: ids -> text, for the warning.
        text_ids: ids of the whole caption.
        max_ids: how many to keep, 0 or more.
        text: the whole caption, for a warning that quotes what was cut off; empty for no warning.
    """
    if len(text_ids) > max_ids and text:
        cut_off = shorten(decode(text_ids[max_ids:]))
        message = f"caption {shorten(text)!r} has {len(text_ids)} text ids, {max_ids} fit; cut off: {cut_off!r}"
        warnings.warn(message, stacklevel=3)
    return text_ids[:max_ids]


def shorten(text: str) -> str:
    """The text with no more than `MAX_QUOTED_CHARACTERS`, to be quoted in a message."""
    return text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "…"
