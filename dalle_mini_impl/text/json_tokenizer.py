"""str <-> text ids by a tokenizer in the JSON format of the tokenizers library, as imported models have them.

The JSON has one key more than the library writes, `dalle_mini_impl`, with what only we need to know
(`JsonSettings`); without it the defaults hold. What captions are given besides their own ids, such as BOS and EOS,
and how they are normalised is said by the JSON itself.
"""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.text.sentencepiece_tokenizer import cut_with
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.text import without_surrogates

SETTINGS = "dalle_mini_impl"


@dataclass(frozen=True, kw_only=True)
class JsonSettings:
    """What the library's format has no place for."""

    pad_id: int = -1
    """Text id of padding, -1 for none."""
    bos_id: int = -1
    """Text id that opens a caption, -1 for none."""
    eos_id: int = -1
    """Text id that ends a caption, -1 for none."""
    unescape_html: bool = False
    """Whether `&amp;` and the like become the characters they stand for before anything else is done."""


class JsonTokenizer:
    """A text tokenizer that came with an imported model; nothing is trained with it.

    Args:
        content: of a `text_tokenizer.json`.
        source: its name, for messages.

    Raises:
        UserError: it is damaged, or the library is not installed.
    """

    def __init__(self, content: bytes, source: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise need_extra("tokenizers", "tokenizers") from error
        try:
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError("no keys and values")
            self.settings = from_dict(JsonSettings, values.pop(SETTINGS, {}), f"{source}: {SETTINGS}")
            self._tokenizer = Tokenizer.from_str(json.dumps(values))
        except UserError:
            raise
        except Exception as error:  # the library raises nothing more special
            reason = re.sub(r" at line 1 column \d+$", "", str(error))  # a place in a text that nobody has seen
            raise UserError(f"{source} is no tokenizer of the tokenizers library: {reason}; import it anew") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.content, self._source = content, source
        self.identity = hashlib.sha256(content).hexdigest()[:16]
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.pad_id, self.bos_id, self.eos_id = self.settings.pad_id, self.settings.bos_id, self.settings.eos_id

    @classmethod
    def read(cls, path: Path) -> "JsonTokenizer":
        """The tokenizer in a file.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"cannot read text tokenizer {path}: {error.strerror}; import it anew") from error

    def encode(self, text: str) -> list[int]:
        """Text -> ids, with BOS and EOS where the model's captions have them, without padding.

        Raises:
            UserError: the text has something that the tokenizer has no id for, not even that of the unknown.
        """
        text = without_surrogates(text)
        while self.settings.unescape_html and (plain := html.unescape(text)) != text:
            text = plain
        try:
            return self._tokenizer.encode(text).ids
        except Exception as error:  # as above
            raise UserError(f"{self._source} has no ids for {text!r}: {error}; use other words") from error

    def decode(self, text_ids: Sequence[int]) -> str:
        """Ids -> normalised text. Padding, BOS and EOS are left out."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        kept = [int(i) for i in text_ids if int(i) not in special]
        return self._tokenizer.decode(kept, skip_special_tokens=False).strip(" ")

    def cut(self, text_ids: list[int], room: int, text: str = "") -> list[int]:
        """Keep the first `room` ids, warning about what was cut when `text` is given."""
        return cut_with(self.decode, text_ids, room, text)
