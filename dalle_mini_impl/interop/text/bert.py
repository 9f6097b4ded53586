"""A BERT `vocab.txt`, such as that of bert-base-chinese, which DALLE-pytorch's ChineseTokenizer downloads.

The file has one token in each line; the id of a token is the number of its line, from 0.
"""

from pathlib import Path

from dalle_mini_impl.interop.text.json_format import TokenizerJson, read_text, special_ids, tokenizer_json
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def convert(path: str | Path, lowercase: bool = False) -> TokenizerJson:
    """Read a vocabulary.

    Args:
        path: the file.
        lowercase: convert texts to lower case and remove accents, as the `uncased` models do; bert-base-chinese does
            neither.

    Raises:
        UserError: the file cannot be read, a token is there twice, or a special token is missing.
    """
    vocab: dict[str, int] = {}
    for token_id, line in enumerate(read_text(path).removesuffix("\n").split("\n")):
        token = line.rstrip("\r")
        if token in vocab:
            raise UserError(
                f"expected a new token in {path}, line {token_id + 1}, got {token!r} of line {vocab[token] + 1} again; "
                f"download the file again"
            )
        vocab[token] = token_id
    if missing := [name for name in SPECIAL_TOKENS if name not in vocab]:
        raise UserError(
            f"expected a line {missing[0]}, got none among the {len(vocab)} of {path}; give a vocab.txt of BERT"
        )
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    return {
        **tokenizer_json(
            model,
            normalizers=[bert_normalizer(lowercase)],
            pre_tokenizers=[{"type": "BertPreTokenizer"}],
            decoders=[{"type": "WordPiece", "prefix": "##", "cleanup": True}],
            special={name: vocab[name] for name in SPECIAL_TOKENS},
        ),
        SETTINGS_KEY: special_ids(vocab),
    }


def bert_normalizer(lowercase: bool) -> TokenizerJson:
    """The library's normalizer that removes control characters and puts spaces around Chinese characters."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": lowercase,
    }
