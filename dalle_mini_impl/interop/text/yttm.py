"""Models of YouTokenToMe, which DALLE-pytorch's YttmTokenizer and ruDALL-E read.

A file has a line with two counts, then so many lines `character id`, then so many rules `left right new`, earliest
first, and last the ids of unknown, padding, BOS and EOS, -1 for none. Words are split at white space, each begins
with ▁, and a run of characters that have no id is one unknown.
"""

from pathlib import Path

from dalle_mini_impl.interop.text.tokenizer_json import Values, around, bpe, read_text
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.text.sentencepiece_tokenizer import SPACE
from dalle_mini_impl.util.errors import UserError

SPECIAL = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")
"""In the order of the last line."""
BLANK = rf"[ \t\n\v\f\r{SPACE}]+"


def convert(path: str | Path, lowercase: bool = False) -> Values:
    """Read a model file.

    Args:
        path: the file.
        lowercase: lower texts, as ruDALL-E does.

    Raises:
        UserError: it cannot be read, or a line does not fit.
    """
    chars, rules, special = _numbers(path)
    names: dict[int, str] = {}
    taken: dict[str, int] = {}

    def add(line: int, number: int, name: str) -> None:
        if number in names or name in taken:
            raise UserError(
                f"{path}, line {line}: id {number} for {name!r} is there already "
                f"({names.get(number, taken.get(name))!r}); the file is damaged"
            )
        names[number], taken[name] = name, number

    for line, (code, number) in enumerate(chars, 2):
        add(line, number, chr(code))
    merges = []
    for line, (left, right, new) in enumerate(rules, 2 + len(chars)):
        if not {left, right} <= names.keys():
            raise UserError(
                f"{path}, line {line}: {left} {right} {new} joins ids that no line before it has; the file is damaged"
            )
        merges.append((names[left], names[right]))
        add(line, new, names[left] + names[right])
    for number, name in zip(special, SPECIAL, strict=True):
        if number >= 0:
            add(2 + len(chars) + len(rules), number, name)
    if special[0] < 0 or SPACE not in taken or sorted(names) != list(range(len(names))):
        raise UserError(
            f"{path} has {len(names)} ids, the last {max(names)}, unknown {special[0]} and ▁ "
            f"{taken.get(SPACE, -1)}; expected no gap and none missing"
        )
    return {
        **around(
            bpe(taken, merges, unk_token=SPECIAL[0], fuse_unk=True),
            normalizers=[
                *([{"type": "Lowercase"}] if lowercase else []),
                {"type": "Replace", "pattern": {"Regex": rf"\A{BLANK}|{BLANK}\z"}, "content": ""},
                {"type": "Replace", "pattern": {"Regex": BLANK}, "content": SPACE},
                {"type": "Prepend", "prepend": SPACE},
            ],
            pre_tokenizers=[
                {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False}
            ],
            decoders=[{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "Fuse"}],
        ),
        SETTINGS_KEY: dict(zip(("pad_id", "bos_id", "eos_id"), special[1:], strict=True)),
    }


def _numbers(path: str | Path) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Characters, rules and special ids, as they are written."""
    lines = read_text(path).splitlines()

    def row(at: int, what: str, count: int) -> list[int]:
        text = lines[at] if at < len(lines) else "the end of the file"
        try:
            values = [int(word) for word in text.split()]
        except ValueError:
            values = []
        if len(values) != count or min(values) < (-1 if what == "special ids" else 0) or max(values) > 0x10FFFF:
            raise UserError(
                f"{path}, line {at + 1}: {text[:80]!r} came, expected {what} ({count} whole numbers); "
                f"it is damaged or no model of YouTokenToMe"
            )
        return values

    chars, rules = row(0, "how many characters and rules follow", 2)
    return (
        [row(at, "a character and its id", 2) for at in range(1, 1 + chars)],
        [row(at, "a rule", 3) for at in range(1 + chars, 1 + chars + rules)],
        row(1 + chars + rules, "special ids", 4),
    )
