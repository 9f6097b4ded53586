"""str <-> text ids by a tokenizer in the JSON format of the `tokenizers` library, the format of imported models.

Such a file describes normalisation and the ids added to each caption, such as BOS and EOS. One key more than the
library writes, `dalle_mini_impl`, holds settings that its format lacks (`JsonSettings`); without it the defaults apply.
"""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.text.caption_tokenizer import MAX_TOKENIZER_BYTES, truncate_ids
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.read_files import read_file
from dalle_mini_impl.util.text import printable, without_surrogates

SETTINGS_KEY = "dalle_mini_impl"
MAX_UNESCAPES = 8
"""Times that HTML entities are replaced, as in `&amp;amp;`; without a limit, a long chain would take quadratic time."""


@dataclass(frozen=True, kw_only=True)
class JsonSettings:
    """Settings that the library's format lacks."""

    pad_id: int = -1
    """Text id of padding, -1 for none."""
    bos_id: int = -1
    """Text id that opens a caption, -1 for none."""
    eos_id: int = -1
    """Text id that ends a caption, -1 for none."""
    unescape_html: bool = False
    """Replace HTML entities such as `&amp;` by their characters before anything else, as CLIP does."""


class JsonTokenizer:
    """The text tokenizer of an imported model.

    Args:
        content: bytes of a `text_tokenizer.json`.
        source: name of the file, for error messages.

    Raises:
        UserError: the content is damaged, or the `tokenizers` library is not installed.
    """

    def __init__(self, content: bytes, source: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise need_extra("tokenizers", "tokenizers") from error
        try:
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
            self.settings = from_dict(JsonSettings, values.pop(SETTINGS_KEY, {}), f"{source}: {SETTINGS_KEY}")
            self._tokenizer = Tokenizer.from_str(json.dumps(values))
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the library raises plain Exception, and PanicException for some damage
            # The position refers to the JSON as it was passed on, not to the user's file.
            reason = printable(re.sub(r" at line 1 column \d+$", "", str(error))[:300])
            raise UserError(f"{source} is no tokenizer of the tokenizers library: {reason}; import it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.content = content
        self._source = source
        self.identity = hashlib.sha256(content).hexdigest()[:16]
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.pad_id = self.settings.pad_id
        self.bos_id = self.settings.bos_id
        self.eos_id = self.settings.eos_id

    @classmethod
    def read(cls, path: Path) -> "JsonTokenizer":
        """Read a tokenizer from a file.

        Raises:
            UserError: the file cannot be read or is damaged.
        """
        return cls(read_file(path, MAX_TOKENIZER_BYTES, "text tokenizer", "import it again"), str(path))

    def encode(self, text: str) -> list[int]:
        """Caption -> ids without padding, with BOS and EOS where the file says so.

        Marks at its end stay: the imported model was trained with them.

        Raises:
            UserError: part of the text has no id, and the tokenizer has no id for unknown text.
        """
        text = without_surrogates(text)
        for _ in range(MAX_UNESCAPES if self.settings.unescape_html else 0):
            text = html.unescape(text)
        try:
            return self._tokenizer.encode(text).ids
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{self._source} has no ids for {text!r}: {error}; use other words") from error

    def encode_beginning(self, text: str) -> list[int]:
        """As `encode`, without the EOS that some files end every caption with.

        Raises:
            UserError: as `encode`.
        """
        ids = self.encode(text)
        return ids[:-1] if ids[-1:] == [self.eos_id] else ids

    def decode(self, text_ids: Sequence[int]) -> str:
        """Ids -> normalised text. Padding, BOS and EOS are left out."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        ids = [int(i) for i in text_ids if int(i) not in special]
        return self._tokenizer.decode(ids, skip_special_tokens=False).strip(" ")

    def piece(self, text_id: int) -> str:
        """The text that one id stands for, as the library writes it; empty for an id without one."""
        return self._tokenizer.id_to_token(text_id) or ""

    def truncate(self, text_ids: list[int], max_ids: int, text: str = "") -> list[int]:
        """Return the first `max_ids` ids; warns about what was cut off if `text`, the whole caption, is given."""
        return truncate_ids(self.decode, text_ids, max_ids, text)
