"""The keys that clients of a service show."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import MAX_TEXT_BYTES, read_bytes
from dalle_mini_impl.util.text import decode_text, split_lines

VARIABLE = "DALLE_API_KEYS"
"""Environment variable with keys, separated by commas."""
LEAST_LENGTH = 16
"""Characters of the shortest key: shorter ones could be guessed."""


class Keys:
    """Keys of which a client has to show one; without any, every client is let in.

    Args:
        keys: the keys.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str) -> bool:
        """Whether a header `Authorization: Bearer KEY` has one of the keys; takes equally long for any wrong one."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        found = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, whichever fits
        return not self._digests or (any(found) and scheme.lower() == "bearer")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(file: Path | None) -> Keys:
    """The keys of a file, with one per line and comments after `#`, and those of the environment.

    Raises:
        UserError: the file cannot be read or has no key, or a key is too short or has spaces.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = split_lines(decode_text(read_bytes(file, MAX_TEXT_BYTES, allow_pipe=True)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected a file with one key per line, got {file} ({error}); give --keys-file another file"
            ) from error
        of_file = [line.partition("#")[0].strip() for line in lines]
        if not any(of_file):
            raise UserError(f"expected at least one key in {file}, got none; write one per line")
        keys += of_file
    for number, key in enumerate(key for key in keys if key):
        if len(key) < LEAST_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"expected keys of at least {LEAST_LENGTH} letters and digits, got another in place {number + 1}; make "
                f"one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    return Keys(key for key in keys if key)
