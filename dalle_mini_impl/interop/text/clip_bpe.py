"""The byte-pair encoding of OpenAI's CLIP, from its list of merges: DALLE-pytorch's default tokenizer.

There, texts are cleaned by ftfy before they are encoded. All of that which works on single characters is done here
by normalizers; the repair of wrongly decoded text is not.
"""

import unicodedata
from pathlib import Path

from dalle_mini_impl.interop.text.tokenizer_json import Values, around, bpe, read_text
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

MERGES = 48894
"""How many of the file's merges are used; with 512 bytes and 2 special tokens that makes 49408 ids."""
LAST_SIGMA = r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])"
"""Which Σ becomes ς rather than σ."""
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
"""What becomes a word. U+0345 never does: CLIP's pattern ignores case, and its upper case is a letter."""
TWO_LETTERS = "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆ"
"""Characters that ftfy takes apart into the letters they show."""


def convert(path: str | Path, lowercase: bool = False) -> Values:
    """Read `bpe_simple_vocab_16e6.txt`, packed by gzip or not.

    Args:
        path: the file.
        lowercase: of no effect, since CLIP lowers all texts.

    Raises:
        UserError: it cannot be read, or a line is no merge.
    """
    byte_names = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]), *map(chr, range(256, 256 + 68))]
    known = dict.fromkeys([*byte_names, *(f"{name}</w>" for name in byte_names)])
    merges = []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n")[1 : MERGES + 1], 2):
        pair = line.split()
        if len(pair) != 2 or not known.keys() >= set(pair) or "".join(pair) in known:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is no merge of two tokens that came before it; "
                f"download the file again"
            )
        merges.append(pair)
        known["".join(pair)] = None
    special = ("<|startoftext|>", "<|endoftext|>")
    vocab = {token: number for number, token in enumerate([*known, *special])}
    return {
        **around(
            bpe(vocab, merges, end_of_word_suffix="</w>"),
            normalizers=_cleaning(),
            pre_tokenizers=[
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
            decoders=[
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
            ],
            special={token: vocab[token] for token in special},
            find_special=True,
        ),
        SETTINGS_KEY: {"bos_id": vocab[special[0]], "eos_id": vocab[special[1]], "unescape_html": True},
    }


def _cleaning() -> list[Values]:
    """What ftfy does to single characters, and lowering as Python does it."""
    controls = {chr(code): bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}
    wide = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFF01, 0xFFF0), 0x3000)}
    letters = {letter: unicodedata.normalize("NFKC", letter) for letter in TWO_LETTERS} | {"ﬅ": "ſt"}
    single = {old: new for old, new in {**controls, **letters, **wide}.items() if new not in (old, "\ufffd")}
    patterns = {
        "[\u201c-\u201f]": '"',
        "[\u02bc\u2018-\u201b]": "'",
        r"\x1b\[[\d;]*[a-zA-Z]": "",
        r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]": "",
    }
    return [
        *({"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in single.items()),
        *({"type": "Replace", "pattern": {"Regex": pattern}, "content": new} for pattern, new in patterns.items()),
        {"type": "NFC"},
        {
            "type": "Replace",
            "pattern": {"Regex": LAST_SIGMA},
            "content": "ς",
        },
        {"type": "Lowercase"},
    ]
