"""str <-> text ids: SentencePiece BPE with byte fallback, so every Unicode text has ids and none is unknown.

Captions lose the marks that end a sentence (`clean_caption.py`), and are normalised (NFKC, by default with case
folding) before they are split. BPE dropout is implemented in `bpe_dropout.py`: the library's own random generator
cannot be seeded a second time, and a training run must resume exactly.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from dalle_mini_impl.text.bpe_dropout import merge_costs, skip_undrawn, split_with_dropout
from dalle_mini_impl.text.caption_tokenizer import MAX_TOKENIZER_BYTES, truncate_ids
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped, replace_file
from dalle_mini_impl.util.read_files import read_file
from dalle_mini_impl.util.text import without_surrogates

NORMALIZATIONS = ("nfkc", "nfkc_cf")
SPACE = "\u2581"
"""SentencePiece's symbol for a space inside its pieces."""
MAX_TRAINING_BYTES = 4192
"""Longest text that the library learns from."""
SPLIT_CHARACTERS = 256
"""Characters at the beginning of a text that BPE dropout always takes into account, whatever is cut off."""


class TextTokenizer:
    """A trained SentencePiece model.

    Args:
        path: the `.model` file; names under `tokenizers/` also find the files that ship with the package.

    Raises:
        UserError: the file is missing, damaged, or lacks one of pad, BOS and EOS.
    """

    def __init__(self, path: str | Path) -> None:
        advice = "give a trained .model file"
        content = read_file(find_shipped(path), MAX_TOKENIZER_BYTES, "text tokenizer", advice)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
            pieces = [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]
        except (RuntimeError, UnicodeDecodeError, ValueError) as error:
            raise UserError(f"cannot read text tokenizer {path}: not a SentencePiece model; {advice}") from error
        self.identity = hashlib.sha256(content).hexdigest()[:16]
        self.vocab_size: int = self._model.vocab_size()
        self.pad_id: int = self._model.pad_id()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        if min(self.pad_id, self.bos_id, self.eos_id) < 0:
            raise UserError(
                f"{path} has the ids pad {self.pad_id}, BOS {self.bos_id}, EOS {self.eos_id}; expected all three "
                f"(-1 is missing); train it with dalle_mini_impl.train.text_tokenizer"
            )
        model = self._model
        mergeable = [
            i for i in range(len(pieces)) if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
        ]
        self.pieces = pieces
        """The text of each id, with `SPACE` for spaces; special ids and bytes as `<pad>`, `<0x41>` and so on."""
        self._ids = {pieces[i]: i for i in mergeable}
        self._costs = merge_costs({pieces[i]: model.get_score(i) for i in mergeable})
        self._byte_ids = [model.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._continuation_ids = frozenset(self._byte_ids[0x80:0xC0]) - {model.unk_id()}
        self._longest_piece = max(map(len, self._ids), default=1)
        self._pieces_cross_words = any(SPACE in piece.strip(SPACE) for piece in self._ids)

    def encode(self, text: str) -> list[int]:
        """Caption -> ids, without BOS, EOS or padding. Marks at its end have no ids (`clean_caption`)."""
        return self.encode_beginning(clean_caption(text))

    def encode_beginning(self, text: str) -> list[int]:
        """As `encode`, with marks at the end: what follows them may make them a part of the caption."""
        return self._model.encode(without_surrogates(text))

    def decode(self, text_ids: Sequence[int]) -> str:
        """Ids -> normalised text. Padding, BOS and EOS are left out."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        return self._model.decode([int(i) for i in text_ids if int(i) not in special])

    def piece(self, text_id: int) -> str:
        """The text that one id stands for, with `SPACE` for a space; see `pieces`."""
        return self.pieces[text_id]

    def encode_with_dropout(
        self, text: str, dropout: float, random: np.random.Generator, max_ids: int | None = None
    ) -> list[int]:
        """Text -> ids with BPE dropout: possible merges are skipped at random, which trains rare pieces too.

        Args:
            text: any text.
            dropout: probability of skipping a possible merge in a round, 0 to 1; 0 gives the same ids as `encode`.
            random: source of randomness, of NumPy's default kind.
            max_ids: how many ids to return at most; None for all. A text that is much longer than these is cut before
                it is split. As in a round only one merge is done, its rest may then be merged a little less.
        """
        normal = self._model.normalize(without_surrogates(clean_caption(text))).replace(" ", SPACE)
        if dropout <= 0:
            ids = self.encode(text)
            # A character without an id has several, one for each of its bytes.
            skip_undrawn(len(normal), sum(number not in self._continuation_ids for number in ids), random)
            return ids[:max_ids]
        if max_ids is not None:
            normal = self._beginning(normal, max_ids)
        return self._ids_of_parts(split_with_dropout(normal, self._costs, dropout, random))[:max_ids]

    def spell(self, piece: str) -> list[int]:
        """The ids of a piece of another tokenizer, in which `SPACE` stands for spaces, without a space before it."""
        return self._ids_of_parts(split_with_dropout(piece, self._costs, 0.0, np.random.default_rng(0)))

    def _ids_of_parts(self, parts: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            number = self._ids.get(part)
            ids += [number] if number is not None else [self._byte_ids[byte] for byte in part.encode()]
        return ids

    def _beginning(self, text: str, max_ids: int) -> str:
        """The part of a normalised text that its first `max_ids` ids depend on, and some more."""
        text = text[: max(SPLIT_CHARACTERS, 2 * self._longest_piece * max_ids)]
        if self._pieces_cross_words:
            return text
        end = -1
        for _ in range(max_ids + 1):  # a word has at least one id
            end = text.find(SPACE, end + 1)
            if end < 0:
                return text
        return text[: max(SPLIT_CHARACTERS, end)]

    def encode_batch(self, texts: Iterable[str], length: int, add_eos: bool = False, warn: bool = True) -> Tensor:
        """Texts -> ids of one length, cut or padded on the right.

        Args:
            texts: B captions.
            length: ids per caption.
            add_eos: end each caption with EOS, also where it is cut.
            warn: warn about captions that are cut.

        Returns:
            (B, length) int64.

        Raises:
            UserError: `texts` is a single text.
        """
        if isinstance(texts, str):
            raise UserError(f"expected a list of texts, got the single text {texts!r}; put it into a list")
        rows = [self.cut_or_pad(self.encode(text), length, add_eos, text if warn else "") for text in texts]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, length)

    def cut_or_pad(self, text_ids: list[int], length: int, add_eos: bool = False, text: str = "") -> list[int]:
        """Cut or pad ids to `length`.

        Args:
            text_ids: ids of the whole caption.
            length: ids to return, EOS among them.
            add_eos: end with EOS (before the padding), also where the caption is cut.
            text: the whole caption, for a warning about what was cut off; empty for no warning.
        """
        ids = self.truncate(text_ids, length - add_eos, text) + [self.eos_id] * add_eos
        return ids + [self.pad_id] * (length - len(ids))

    def truncate(self, text_ids: list[int], max_ids: int, text: str = "") -> list[int]:
        """Return the first `max_ids` ids; warns about what was cut off if `text`, the whole caption, is given."""
        return truncate_ids(self.decode, text_ids, max_ids, text)


def matching_ids(tokenizer: TextTokenizer, other: TextTokenizer) -> list[list[int]]:
    """For each id of one tokenizer, the ids of another one that stand for the same text.

    Returns:
        One list per id of `tokenizer`: a single id of `other` where both have the piece, else the ids that spell it.
    """
    known = {piece: number for number, piece in enumerate(other.pieces)}
    roles = {getattr(tokenizer, role): getattr(other, role) for role in ("pad_id", "bos_id", "eos_id")}
    return [
        [roles[number]] if number in roles else [known[piece]] if piece in known else other.spell(piece)
        for number, piece in enumerate(tokenizer.pieces)
    ]


def _parts(caption: str) -> Iterator[str]:
    """The caption in parts that the library takes: it drops longer ones unsaid. Cut at a space where there is one."""
    if len(caption.encode("utf-8", "replace")) <= MAX_TRAINING_BYTES:
        yield caption
        return
    longest = MAX_TRAINING_BYTES // 4  # a character has at most four bytes
    start = 0
    while start < len(caption):
        space = caption.rfind(" ", start + 1, start + longest) if start + longest < len(caption) else -1
        end = space if space > 0 else start + longest
        yield caption[start:end]
        start = end


def train_text_tokenizer(
    captions: Iterable[str], out: str | Path, vocab_size: int, normalization: str = "nfkc_cf"
) -> TextTokenizer:
    """Learn a BPE vocabulary from captions and write it as a SentencePiece model.

    Args:
        captions: training texts.
        out: the `.model` file to write.
        vocab_size: largest number of ids, 4 special and 256 byte ids among them; few captions may give fewer.
        normalization: `nfkc`, or `nfkc_cf`, which also folds case.

    Raises:
        UserError: the captions do not support that vocabulary, or `normalization` is unknown.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization is {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}")
    with replace_file(out) as temporary:
        try:
            with temporary.open("wb") as file:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=(part for caption in captions for part in _parts(caption)),
                    model_writer=file,
                    model_type="bpe",
                    vocab_size=vocab_size,
                    hard_vocab_limit=False,
                    byte_fallback=True,
                    character_coverage=0.9999,
                    normalization_rule_name=normalization,
                    pad_id=0,
                    unk_id=1,
                    bos_id=2,
                    eos_id=3,
                    minloglevel=2,
                )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
            advice = (
                f"the characters of these captions alone need {needed[1]} ids: set vocab_size to more than that"
                if needed
                else "give more captions, or a vocab_size from 300 upwards"
            )
            raise UserError(f"no vocabulary of {vocab_size} could be learned: {reason}; {advice}") from error
    return TextTokenizer(out)
