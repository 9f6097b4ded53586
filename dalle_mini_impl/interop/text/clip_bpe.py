"""The byte-pair encoding of OpenAI's CLIP, from its list of merges `bpe_simple_vocab_16e6.txt`.

It is DALLE-pytorch's default tokenizer (`SimpleTokenizer`). There, texts are cleaned by ftfy before they are encoded.
What ftfy does to single characters is done here by normalizers; its repair of wrongly decoded text is not.
"""

import unicodedata
from pathlib import Path

from dalle_mini_impl.interop.text.json_format import TokenizerJson, bpe_model, read_text, tokenizer_json
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

MERGES = 48894
"""Number of merges that CLIP uses of the file; with 512 byte tokens and 2 special ones they make 49408 ids."""
BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
FINAL_SIGMA = r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])"
"""A Σ at the end of a word, whose lower case is ς instead of σ."""
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
"""What is a word. U+0345 never is: CLIP's pattern ignores case, and the upper case of that character is a letter."""
LIGATURES = "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆ"
"""Characters that ftfy replaces by the two or three letters they show."""


def convert(path: str | Path, lowercase: bool = False) -> TokenizerJson:
    """Read the list of merges, compressed by gzip or not.

    Args:
        path: the file.
        lowercase: has no effect, since CLIP always converts texts to lower case.

    Raises:
        UserError: the file cannot be read, or a line is no merge.
    """
    byte_names = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]), *map(chr, range(256, 256 + 68))]
    tokens = dict.fromkeys([*byte_names, *(f"{name}</w>" for name in byte_names)])  # a set that keeps its order
    merges = []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n")[1 : MERGES + 1], 2):
        pair = line.split()
        if len(pair) != 2 or not tokens.keys() >= set(pair) or "".join(pair) in tokens:
            raise UserError(
                f"expected a new merge of two earlier tokens in {path}, line {number}, got {line[:80]!r}; "
                f"download the file again"
            )
        merges.append(pair)
        tokens["".join(pair)] = None
    vocab = {token: token_id for token_id, token in enumerate([*tokens, BOS, EOS])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        **tokenizer_json(
            bpe_model(vocab, merges, end_of_word_suffix="</w>"),
            normalizers=_cleaning(),
            pre_tokenizers=[
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
                byte_level,
            ],
            decoders=[byte_level, _replace({"String": "</w>"}, " ")],
            special={BOS: vocab[BOS], EOS: vocab[EOS]},
            special_after_normalizers=True,
        ),
        SETTINGS_KEY: {"bos_id": vocab[BOS], "eos_id": vocab[EOS], "unescape_html": True},
    }


def _cleaning() -> list[TokenizerJson]:
    """What ftfy does to single characters, then lower case as Python's `str.lower` makes it."""
    controls = {chr(code): bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}
    ligatures = {letter: unicodedata.normalize("NFKC", letter) for letter in LIGATURES} | {"ﬅ": "ſt"}
    full_width = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFF01, 0xFFF0), 0x3000)}
    replacements = {
        old: new for old, new in {**controls, **ligatures, **full_width}.items() if new not in (old, "\ufffd")
    }
    patterns = {
        "[\u201c-\u201f]": '"',
        "[\u02bc\u2018-\u201b]": "'",
        r"\x1b\[[\d;]*[a-zA-Z]": "",
        r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]": "",
    }
    return [
        *(_replace({"String": old}, new) for old, new in replacements.items()),
        *(_replace({"Regex": pattern}, new) for pattern, new in patterns.items()),
        {"type": "NFC"},
        _replace({"Regex": FINAL_SIGMA}, "ς"),
        {"type": "Lowercase"},
    ]


def _replace(pattern: dict[str, str], content: str) -> TokenizerJson:
    return {"type": "Replace", "pattern": pattern, "content": content}
