"""Byte-pair encoding of characters, in two files: the tokenizers library's CharBPETokenizer, which minDALL-E uses.

`…vocab.json` maps tokens to ids; `…merges.txt` has two tokens in each line, after a first line `#version: …`. The last
token of a word ends with `</w>`.
"""

from pathlib import Path

from dalle_mini_impl.interop.text.bert import bert_normalizer
from dalle_mini_impl.interop.text.json_format import (
    TokenizerJson,
    bpe_model,
    read_json,
    read_text,
    special_ids,
    tokenizer_json,
)
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

UNKNOWN_TOKENS = ("[UNK]", "<unk>")
"""Names that the token for unknown characters can have."""


def convert(path: str | Path, lowercase: bool = False) -> TokenizerJson:
    """Read a vocabulary and its merges; a token `[PAD]` is added if there is none, as minDALL-E does.

    Args:
        path: one of the two files; the other lies beside it.
        lowercase: convert texts to lower case, as minDALL-E does.

    Raises:
        UserError: a file cannot be read, or the two do not belong together.
    """
    vocab_path, merges_path = vocab_and_merges_paths(Path(path))
    vocab = read_json(vocab_path)
    if invalid := [token for token, token_id in vocab.items() if type(token_id) is not int]:
        raise UserError(
            f"expected a whole number for every token in {vocab_path}, got {vocab[invalid[0]]!r} for {invalid[0]!r}; "
            f"download the file again"
        )
    if not any(token.endswith("</w>") for token in vocab):
        raise UserError(
            f"expected tokens that end with </w>, as a vocabulary of characters has them, got none in {vocab_path}; "
            f"load it with the package it comes from, and give the file that the tokenizers library saves"
        )
    merges = _read_merges(merges_path, vocab, vocab_path)
    unknown = next((name for name in UNKNOWN_TOKENS if name in vocab), None)
    vocab.setdefault("[PAD]", len(vocab))
    return {
        **tokenizer_json(
            bpe_model(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>"),
            normalizers=[bert_normalizer(lowercase=False), *([{"type": "Lowercase"}] if lowercase else [])],
            pre_tokenizers=[{"type": "BertPreTokenizer"}],
            decoders=[{"type": "BPEDecoder", "suffix": "</w>"}],
            special={name: vocab[name] for name in (unknown, "[PAD]") if name},
        ),
        SETTINGS_KEY: special_ids(vocab),
    }


def vocab_and_merges_paths(path: Path) -> tuple[Path, Path]:
    """Paths of the vocabulary and of the merges, given either."""
    vocab_path = path.with_name(path.name.replace("merges", "vocab")).with_suffix(".json")
    merges_path = path.with_name(path.name.replace("vocab", "merges")).with_suffix(".txt")
    return vocab_path, merges_path


def _read_merges(path: Path, vocab: TokenizerJson, vocab_path: Path) -> list[list[str]]:
    merges = []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), 1):
        if line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise UserError(
                f"expected a merge of two tokens of {vocab_path} in {path}, line {number}, got {line[:80]!r}; "
                f"download both files again"
            )
        merges.append(pair)
    return merges
