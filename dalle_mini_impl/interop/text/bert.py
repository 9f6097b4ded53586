"""A BERT `vocab.txt`, such as that of bert-base-chinese, which DALLE-pytorch's ChineseTokenizer downloads."""

from pathlib import Path

from dalle_mini_impl.interop.text.tokenizer_json import Values, around, read_text, special_ids
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def convert(path: str | Path, lowercase: bool = False) -> Values:
    """Read a vocabulary of one token a line.

    Args:
        path: the file.
        lowercase: lower texts and take accents off, as the `uncased` models do; bert-base-chinese does not.

    Raises:
        UserError: it cannot be read, or a special token is missing.
    """
    vocab: dict[str, int] = {}
    for number, token in enumerate(read_text(path).removesuffix("\n").split("\n")):
        if (token := token.rstrip("\r")) in vocab:
            raise UserError(
                f"{path}, line {number + 1}: {token!r} is on line {vocab[token] + 1} already; download the file again"
            )
        vocab[token] = number
    if missing := [name for name in SPECIAL if name not in vocab]:
        raise UserError(f"{path} has {len(vocab)} lines, and {missing[0]} is none of them; give a vocab.txt of BERT")
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": lowercase,
    }
    return {
        **around(
            model,
            normalizers=[normalizer],
            pre_tokenizers=[{"type": "BertPreTokenizer"}],
            decoders=[{"type": "WordPiece", "prefix": "##", "cleanup": True}],
            special={name: vocab[name] for name in SPECIAL},
        ),
        SETTINGS_KEY: special_ids(vocab),
    }
