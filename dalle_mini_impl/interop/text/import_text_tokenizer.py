"""Read a text tokenizer of another project, whatever its format, as a `JsonTokenizer`."""

import json
from pathlib import Path

from dalle_mini_impl.interop.text import bert, char_bpe, clip_bpe, tokenizer_json, yttm
from dalle_mini_impl.interop.text.json_format import TokenizerJson, read_json, read_text
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY, JsonTokenizer
from dalle_mini_impl.util.errors import UserError

CONVERTERS = {
    "clip-bpe": clip_bpe.convert,
    "json": tokenizer_json.convert,
    "char-bpe": char_bpe.convert,
    "bert": bert.convert,
    "yttm": yttm.convert,
}
"""The reader of each format, by the name that `dalle import text-tokenizer --kind` gives it."""


def import_text_tokenizer(
    path: str | Path, kind: str | None = None, *, lowercase: bool = False, bos: bool = False, eos: bool = False
) -> JsonTokenizer:
    """Convert the text tokenizer in a file.

    `checkpoint.text_tokenizer.save_text_tokenizer` writes the result into a checkpoint folder.

    Args:
        path: the file.
        kind: its format, a key of `CONVERTERS`; None guesses it from the content.
        lowercase: convert texts to lower case, where the format does not determine it.
        bos: begin every caption with the tokenizer's BOS, in addition to the BOS that opens the stream.
        eos: end every caption with EOS.

    Raises:
        UserError: the file cannot be read, its format cannot be guessed, or a requested BOS or EOS is missing.
    """
    kind = kind or guess_kind(path)
    if kind not in CONVERTERS:
        raise UserError(f"expected a kind of text tokenizer, got {kind!r}; give one of {', '.join(CONVERTERS)}")
    content = CONVERTERS[kind](path, lowercase)
    if bos or eos:
        content["post_processor"] = _add_special_tokens(content, bos, eos, str(path))
    return JsonTokenizer(json.dumps(content, ensure_ascii=False).encode(), str(path))


def guess_kind(path: str | Path) -> str:
    """The format of a file, guessed from its first lines.

    Raises:
        UserError: the file cannot be read, or has none of the known formats.
    """
    text = read_text(path)
    first_line = text.split("\n", 1)[0].strip()
    if text.lstrip().startswith("{"):
        return "json" if isinstance(read_json(path).get("model"), dict) else "char-bpe"
    if "#version" in first_line:
        vocab_path, _ = char_bpe.vocab_and_merges_paths(Path(path))
        return "char-bpe" if vocab_path.is_file() else "clip-bpe"
    if len(first_line.split()) == 2 and all(word.isdecimal() for word in first_line.split()):
        return "yttm"
    if "[UNK]" in text.split():
        return "bert"
    raise UserError(
        f"expected a text tokenizer of a known format, got {path}, which begins with {first_line[:80]!r}; "
        f"name its kind: {', '.join(CONVERTERS)}"
    )


def _add_special_tokens(content: TokenizerJson, bos: bool, eos: bool, source: str) -> TokenizerJson:
    """The library's `post_processor` that puts BOS before a text and EOS after it."""
    requested = [key for key, is_requested in (("bos_id", bos), ("eos_id", eos)) if is_requested]
    tokens = [_special_token(content, key, source) for key in requested]
    text: TokenizerJson = {"Sequence": {"id": "A", "type_id": 0}}
    pieces: list[TokenizerJson] = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in tokens]
    return {
        "type": "TemplateProcessing",
        "single": [*pieces[:bos], text, *pieces[bos:]],
        "pair": [text],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]} for name, token_id in tokens},
    }


def _special_token(content: TokenizerJson, key: str, source: str) -> tuple[str, int]:
    """Name and id of BOS (`key` is `bos_id`) or EOS (`eos_id`)."""
    token_id = content[SETTINGS_KEY].get(key, -1)
    vocab = content["model"].get("vocab")
    names = {value: name for name, value in vocab.items()} if isinstance(vocab, dict) else {}
    names |= {token["id"]: token["content"] for token in content["added_tokens"]}
    if token_id not in names:
        option = key.removesuffix("_id")
        raise UserError(
            f"expected {option.upper()} under a common name, got none in {source}; import it without --{option}"
        )
    return names[token_id], token_id
