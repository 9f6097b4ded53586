"""Text tokenizers of other projects -> `text_tokenizer.json`, whatever their format."""

import json
from pathlib import Path

from dalle_mini_impl.interop.text import bert, char_bpe, clip_bpe, tokenizer_json, yttm
from dalle_mini_impl.interop.text.tokenizer_json import Values, read_json, read_text
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY, JsonTokenizer
from dalle_mini_impl.util.errors import UserError

KINDS = {
    "clip-bpe": clip_bpe.convert,
    "json": tokenizer_json.convert,
    "char-bpe": char_bpe.convert,
    "bert": bert.convert,
    "yttm": yttm.convert,
}


def load(
    path: str | Path, kind: str = "", *, lowercase: bool = False, bos: bool = False, eos: bool = False
) -> JsonTokenizer:
    """Convert the text tokenizer in a file; `checkpoint.save_text_tokenizer` puts it into a folder.

    Args:
        path: the file.
        kind: its format, one of `KINDS`; "" guesses.
        lowercase: lower texts, where the format does not say so itself.
        bos: begin every caption with the tokenizer's BOS, besides the one that opens the stream.
        eos: end every caption with EOS.

    Raises:
        UserError: it cannot be read, its kind cannot be guessed, or there is no BOS or EOS.
    """
    if (kind := kind or guess(path)) not in KINDS:
        raise UserError(f"unknown kind of text tokenizer {kind!r}; known are {', '.join(KINDS)}")
    values = KINDS[kind](path, lowercase)
    if bos or eos:
        template = [_special(values, key, str(path)) for key, wanted in (("bos_id", bos), ("eos_id", eos)) if wanted]
        around: Values = {"Sequence": {"id": "A", "type_id": 0}}
        pieces: list[Values] = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in template]
        values["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*pieces[:bos], around, *pieces[bos:]],
            "pair": [around],
            "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in template},
        }
    return JsonTokenizer(json.dumps(values, ensure_ascii=False).encode(), str(path))


def guess(path: str | Path) -> str:
    """The kind of a file, from its first lines.

    Raises:
        UserError: it cannot be read, or is of none that is known.
    """
    text = read_text(path)
    first = text.split("\n", 1)[0].strip()
    if text.lstrip().startswith("{"):
        return "json" if isinstance(read_json(path).get("model"), dict) else "char-bpe"
    if "#version" in first:
        return "char-bpe" if char_bpe.pair_of(Path(path))[0].is_file() else "clip-bpe"
    if len(first.split()) == 2 and all(word.isdecimal() for word in first.split()):
        return "yttm"
    if "[UNK]" in text.split():
        return "bert"
    raise UserError(
        f"{path} begins with {first[:80]!r}, which is no text tokenizer that is known; "
        f"say which kind it is: {', '.join(KINDS)}"
    )


def _special(values: Values, key: str, source: str) -> tuple[str, int]:
    """Name and id of BOS or EOS."""
    number = values[SETTINGS_KEY].get(key, -1)
    vocab = values["model"].get("vocab")
    names = {value: name for name, value in vocab.items()} if isinstance(vocab, dict) else {}
    names |= {token["id"]: token["content"] for token in values["added_tokens"]}
    if number not in names:
        raise UserError(
            f"{source} has no {key.removesuffix('_id').upper()} under a name that is known; "
            f"captions cannot be given one"
        )
    return names[number], number
