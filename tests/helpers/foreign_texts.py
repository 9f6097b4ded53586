"""Texts and files that several tests of imported text tokenizers use."""

import json
from pathlib import Path
from typing import Any

from helpers.models import CAPTIONS

TEXTS = [
    *CAPTIONS, "", " ", "  two   spaces ", "a\tb\nc\r\nd\x0b\x0ce", "A Red HEART", "hearts, stars & cats!", "x",
    "▁", "a▁red ▁", "a\u00a0red\u3000heart", "ππ zz", "a🦄🦄red", "it's 12 o'clock", "<PAD> [UNK] </s> <UNK>",
    "e\u0301 é", "!?", "!",
]  # fmt: skip
"""Captions and awkward texts, for comparing ids."""

BERT_VOCAB = "[PAD]\n[unused1]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n心\n形\na\ncat\n##s\nA\n!\n##e\ne\n"
"""A small `vocab.txt`."""

WORD_LEVEL_JSON: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"!": 0, "a": 1, "red": 2, "heart": 40}, "unk_token": "!"},
}  # fmt: skip
"""A small `tokenizer.json` with a token per word."""


def write_text(path: str | Path, text: str) -> Path:
    """Write a file in UTF-8, and return its path."""
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def write_word_level_json(path: str | Path = "words.json", **vocab: int) -> Path:
    """Write `WORD_LEVEL_JSON`, with other words where they are given."""
    model = WORD_LEVEL_JSON["model"]
    content = {**WORD_LEVEL_JSON, "model": {**model, "vocab": {"!": 0, **vocab} if vocab else model["vocab"]}}
    return write_text(path, json.dumps(content))


def train_tokenizer_json(path: Path) -> Any:
    """Write a byte-level tokenizer as DALLE-pytorch's users make it: with BOS, EOS, padding, truncation and dropout.

    Returns:
        The library's tokenizer, without padding, truncation and dropout.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(dropout=0.9))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=331, special_tokens=["[PAD]", "[SEP]", "[CLS]"], show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 1), ("[CLS]", 2))
    tokenizer.enable_padding(length=31)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))
    tokenizer.model.dropout = None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
