"""Models of YouTokenToMe, which DALLE-pytorch's YttmTokenizer and ruDALL-E read.

A file has a line with two counts, then so many lines `character id`, then so many rules `left right new` in the order
they were learned, and last the ids of unknown, padding, BOS and EOS, -1 for none. Texts are split at ASCII white space;
every word begins with ▁; a run of characters without an id is one unknown.
"""

from pathlib import Path

from dalle_mini_impl.interop.text.json_format import TokenizerJson, bpe_model, read_text, tokenizer_json
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.text.sentencepiece_tokenizer import SPACE
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import split_lines

SPECIAL_TOKENS = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")
"""In the order of the last line."""
BLANKS = rf"[ \t\n\v\f\r{SPACE}]+"


def convert(path: str | Path, lowercase: bool = False) -> TokenizerJson:
    """Read a model file.

    Args:
        path: the file.
        lowercase: convert texts to lower case, as ruDALL-E does.

    Raises:
        UserError: the file cannot be read, or a line has no or another meaning.
    """
    characters, rules, special = _read_lines(path)
    vocab, merges = _vocab_and_merges(path, characters, rules, special)
    return {
        **tokenizer_json(
            bpe_model(vocab, merges, unk_token=SPECIAL_TOKENS[0], fuse_unk=True),
            normalizers=[
                *([{"type": "Lowercase"}] if lowercase else []),
                {"type": "Replace", "pattern": {"Regex": rf"\A{BLANKS}|{BLANKS}\z"}, "content": ""},
                {"type": "Replace", "pattern": {"Regex": BLANKS}, "content": SPACE},
                {"type": "Prepend", "prepend": SPACE},
            ],
            pre_tokenizers=[
                {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False}
            ],
            decoders=[{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "Fuse"}],
        ),
        SETTINGS_KEY: dict(zip(("pad_id", "bos_id", "eos_id"), special[1:], strict=True)),
    }


def _vocab_and_merges(
    path: str | Path, characters: list[list[int]], rules: list[list[int]], special: list[int]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of all tokens, and the pairs of tokens that are joined, in order."""
    names: dict[int, str] = {}
    vocab: dict[str, int] = {}

    def add(line: int, token_id: int, name: str) -> None:
        if token_id in names or name in vocab:
            raise UserError(
                f"expected a new id and token in {path}, line {line}, got {token_id} for {name!r} when there is "
                f"{names.get(token_id, vocab.get(name))!r}; the file is damaged: download it again"
            )
        names[token_id] = name
        vocab[name] = token_id

    for line, (code, token_id) in enumerate(characters, 2):
        add(line, token_id, chr(code))
    merges = []
    for line, (left, right, new) in enumerate(rules, 2 + len(characters)):
        if not {left, right} <= names.keys():
            raise UserError(
                f"expected a rule on ids of earlier lines in {path}, line {line}, got {left} {right} {new}; "
                f"the file is damaged: download it again"
            )
        merges.append((names[left], names[right]))
        add(line, new, names[left] + names[right])
    last_line = 2 + len(characters) + len(rules)
    for token_id, name in zip(special, SPECIAL_TOKENS, strict=True):
        if token_id >= 0:
            add(last_line, token_id, name)
    if special[0] < 0 or SPACE not in vocab or sorted(names) != list(range(len(names))):
        raise UserError(
            f"expected ids without gaps, among them those of unknown and ▁, got {len(names)} ids up to {max(names)}, "
            f"unknown {special[0]} and ▁ {vocab.get(SPACE, -1)} in {path}; download it again"
        )
    return vocab, merges


def _read_lines(path: str | Path) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Lines of characters, lines of rules, and the special ids, as numbers."""
    lines = split_lines(read_text(path))

    def numbers(index: int, meaning: str, count: int) -> list[int]:
        text = lines[index] if index < len(lines) else "the end of the file"
        try:
            values = [int(word) for word in text.split()]
        except ValueError:
            values = []
        least = -1 if meaning == "special ids" else 0
        if len(values) != count or min(values) < least or max(values) > 0x10FFFF:
            raise UserError(
                f"expected {meaning} ({count} whole numbers) in {path}, line {index + 1}, got {text[:80]!r}; "
                f"the file is damaged or no model of YouTokenToMe"
            )
        return values

    n_characters, n_rules = numbers(0, "the counts of characters and rules", 2)
    first_rule = 1 + n_characters
    last_line = first_rule + n_rules
    characters = [numbers(index, "a character and its id", 2) for index in range(1, first_rule)]
    rules = [numbers(index, "a rule", 3) for index in range(first_rule, last_line)]
    return characters, rules, numbers(last_line, "special ids", 4)
