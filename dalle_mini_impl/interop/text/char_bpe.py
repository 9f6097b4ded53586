"""A `vocab.json` with `merges.txt` of characters: CharBPETokenizer of the tokenizers library, as minDALL-E has it."""

from pathlib import Path

from dalle_mini_impl.interop.text.tokenizer_json import Values, around, bpe, read_json, read_text, special_ids
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

UNKNOWN = ("[UNK]", "<unk>")


def convert(path: str | Path, lowercase: bool = False) -> Values:
    """Read a vocabulary and the merges beside it, whose name has `merges` for `vocab` and `.txt` for `.json`.

    Args:
        path: one of the two files.
        lowercase: lower texts, as minDALL-E does.

    Raises:
        UserError: one of them cannot be read, or they do not go together.
    """
    vocab_path, merges_path = pair_of(Path(path))
    vocab, merges = read_json(vocab_path), []
    if bad := [token for token, number in vocab.items() if type(number) is not int]:
        raise UserError(f"{vocab_path}: {bad[0]!r} is {vocab[bad[0]]!r}; expected a number for every token")
    if not any(token.endswith("</w>") for token in vocab):
        raise UserError(
            f"{vocab_path} has no token that ends with </w>, so it is not one of characters; load it with "
            f"the package it is from, and give what the tokenizers library saves"
        )
    for number, line in enumerate(read_text(merges_path).rstrip("\n").split("\n"), 1):
        if line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise UserError(
                f"{merges_path}, line {number}: {line[:80]!r} is no merge of two tokens of {vocab_path}; "
                f"download both files again"
            )
        merges.append(pair)
    unknown = next((name for name in UNKNOWN if name in vocab), None)
    vocab.setdefault("[PAD]", len(vocab))
    return {
        **around(
            bpe(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>"),
            normalizers=[_bert_normalizer(), *([{"type": "Lowercase"}] if lowercase else [])],
            pre_tokenizers=[{"type": "BertPreTokenizer"}],
            decoders=[{"type": "BPEDecoder", "suffix": "</w>"}],
            special={name: vocab[name] for name in (unknown, "[PAD]") if name},
        ),
        SETTINGS_KEY: special_ids(vocab),
    }


def pair_of(path: Path) -> tuple[Path, Path]:
    """The files of vocabulary and merges, given one of them."""
    vocab = path.with_name(path.name.replace("merges", "vocab")).with_suffix(".json")
    return vocab, path.with_name(path.name.replace("vocab", "merges")).with_suffix(".txt")


def _bert_normalizer() -> Values:
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": False,
    }
