"""str <-> text ids: SentencePiece BPE with byte fallback, so any Unicode text has ids and none is unknown.

Text is normalised (NFKC, by default with case folding) before it is split. BPE dropout (Provilkov et al.
2020) is done here rather than by the library, whose random generator cannot be seeded twice: a training run
must be able to resume exactly.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file, shipped
from dalle_mini_impl.util.text import without_surrogates

NORMALIZATIONS = ("nfkc", "nfkc_cf")
SPACE = "\u2581"
SHOWN = 200
"""Characters of a caption that a warning shows."""


class TextTokenizer:
    """A trained SentencePiece model.

    Args:
        path: the `.model` file; `tokenizers/…` also finds those that ship with the package.

    Raises:
        UserError: the file is missing, damaged, or lacks one of pad, BOS and EOS.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            content = shipped(path).read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a SentencePiece model"
            raise UserError(f"cannot read text tokenizer {path}: {reason}; give a trained .model file") from error
        self.identity = hashlib.sha256(content).hexdigest()[:16]
        self.vocab_size: int = self._model.vocab_size()
        self.pad_id: int = self._model.pad_id()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        if min(self.pad_id, self.bos_id, self.eos_id) < 0:
            raise UserError(
                f"{path} has pad {self.pad_id}, BOS {self.bos_id}, EOS {self.eos_id}; none may be missing: "
                f"train it with dalle_mini_impl.train.text_tokenizer"
            )
        self._scores = {
            self._model.id_to_piece(i): (self._model.get_score(i), i)
            for i in range(self.vocab_size)
            if not (self._model.is_control(i) or self._model.is_unknown(i) or self._model.is_byte(i))
        }

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without BOS, EOS or padding. Empty text has no ids."""
        return self._model.encode(without_surrogates(text))

    def decode(self, text_ids: Sequence[int]) -> str:
        """Ids -> normalised text. Padding, BOS and EOS are left out."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        return self._model.decode([int(i) for i in text_ids if int(i) not in special])

    def encode_with_dropout(self, text: str, dropout: float, random: np.random.Generator) -> list[int]:
        """Text -> ids where each merge is skipped with some chance, so the model sees rarer pieces too.

        Args:
            text: any text.
            dropout: chance of skipping a possible merge in a round, 0 to 1; 0 gives what `encode` gives.
            random: source of the choices.
        """
        pieces = list(self._model.normalize(without_surrogates(text)).replace(" ", SPACE))
        while len(pieces) > 1:
            best, best_score = -1, -np.inf
            skip = random.random(len(pieces) - 1) < dropout
            for place in range(len(pieces) - 1):
                entry = self._scores.get(pieces[place] + pieces[place + 1])
                if entry is not None and not skip[place] and entry[0] > best_score:
                    best, best_score = place, entry[0]
            if best < 0:
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        ids: list[int] = []
        for piece in pieces:
            known = self._scores.get(piece)
            ids += [known[1]] if known else [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in piece.encode()]
        return ids

    def encode_batch(self, texts: Iterable[str], length: int, end: bool = False, warn: bool = True) -> Tensor:
        """Texts -> ids of one length, cut or padded on the right.

        Args:
            texts: captions.
            length: ids per caption.
            end: finish each caption with EOS, which is kept when the caption is cut.
            warn: say what was cut from captions that do not fit.

        Returns:
            (B, length) int64.
        """
        rows = [self.fit(self.encode(text), length, end, text if warn else "") for text in texts]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, length)

    def fit(self, text_ids: list[int], length: int, end: bool = False, text: str = "") -> list[int]:
        """Cut or pad ids to `length`, warning about what was cut when `text` is given."""
        kept = self.cut(text_ids, length - end, text) + [self.eos_id] * end
        return kept + [self.pad_id] * (length - len(kept))

    def cut(self, text_ids: list[int], room: int, text: str = "") -> list[int]:
        """Keep the first `room` ids, warning about what was cut when `text` is given."""
        return cut_with(self.decode, text_ids, room, text)


class CaptionTokenizer(Protocol):
    """What drawing pictures needs of a text tokenizer: of ours, or of one that came with an imported model."""

    identity: str
    """Hash of its file."""
    vocab_size: int
    """Number of text ids."""
    eos_id: int
    """Text id that ends a caption, -1 for none."""

    def encode(self, text: str) -> list[int]:
        """Text -> ids without padding."""

    def decode(self, text_ids: Sequence[int]) -> str:
        """Ids -> normalised text."""

    def cut(self, text_ids: list[int], room: int, text: str = "") -> list[int]:
        """Keep the first `room` ids, warning about what was cut when `text` is given."""


def cut_with(decode: Callable[[list[int]], str], text_ids: list[int], room: int, text: str) -> list[int]:
    """The first `room` ids; warns about what was cut, as `decode` has it, when `text` is given."""
    if len(text_ids) > room and text:
        lost = _start(decode(text_ids[room:]))
        message = f"caption {_start(text)!r} has {len(text_ids)} text ids, {room} fit; cut off: {lost!r}"
        warnings.warn(message, stacklevel=3)
    return text_ids[:room]


def _start(text: str) -> str:
    """What a message shows of a text."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def train_text_tokenizer(
    captions: Iterable[str], out: str | Path, vocab_size: int, normalization: str = "nfkc_cf"
) -> TextTokenizer:
    """Learn a BPE vocabulary and write it as a SentencePiece model.

    Args:
        captions: training text, one caption each.
        out: the `.model` file to write.
        vocab_size: most ids to use, 4 special and 256 byte ids among them; few captions may support fewer.
        normalization: `nfkc`, or `nfkc_cf` which also folds case.

    Raises:
        UserError: the captions do not support that vocabulary, or `normalization` is unknown.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(f"unknown normalization {normalization!r}; expected one of {', '.join(NORMALIZATIONS)}")
    with replace_file(out) as temporary:
        try:
            with temporary.open("wb") as file:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(captions),
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
            raise UserError(
                f"no vocabulary of {vocab_size} could be learned: {reason}; "
                f"give more captions, or a vocab_size from 300 upwards"
            ) from error
    return TextTokenizer(out)
