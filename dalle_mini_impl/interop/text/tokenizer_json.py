"""Tokenizers saved by the tokenizers library, such as the `tokenizer.json` that DALLE-pytorch's HugTokenizer reads.

Also what all formats share: reading a file, and the library's JSON around a model.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError

Values = dict[str, Any]
"""The content of a `text_tokenizer.json`."""

NAMES = {
    "pad_id": ("[PAD]", "<pad>", "<PAD>", "<|padding|>"),
    "bos_id": ("[CLS]", "<s>", "<bos>", "<BOS>", "[BOS]", "<|startoftext|>"),
    "eos_id": ("[SEP]", "</s>", "<eos>", "<EOS>", "[EOS]", "<|endoftext|>"),
}
"""What special ids are commonly called."""


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, unpacked if it is packed by gzip.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte {error.start}); a SentencePiece model is used as it is, "
            f"as text_tokenizer.model of a checkpoint folder"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name the file of a text tokenizer") from error


def read_json(path: str | Path) -> Values:
    """The keys and values of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}; download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected keys and values")
    return values


def around(
    model: Values,
    *,
    normalizers: Sequence[Values] = (),
    pre_tokenizers: Sequence[Values] = (),
    decoders: Sequence[Values] = (),
    special: Mapping[str, int] | None = None,
    find_special: bool = False,
) -> Values:
    """The library's JSON around a model.

    Args:
        model: its `model`.
        normalizers: what is done with texts, in order.
        pre_tokenizers: what then splits them into words.
        decoders: what makes text of tokens.
        special: tokens with ids of their own.
        find_special: whether texts are searched for them after they are normalised, rather than before.
    """
    added = [
        {
            "id": number,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": find_special,
            "special": True,
        }
        for name, number in (special or {}).items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": list(normalizers)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizers)},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": list(decoders)},
        "model": model,
    }


def bpe(vocab: Mapping[str, int], merges: Iterable[Sequence[str]], **options: Any) -> Values:
    """The library's `model` for byte-pair encoding; `options` are those of its own that are not null."""
    empty = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **empty, **flags, **options, "vocab": dict(vocab), "merges": [list(pair) for pair in merges]}


def special_ids(vocab: Mapping[str, int]) -> dict[str, int]:
    """Ids of padding, BOS and EOS, as far as a vocabulary has them under a common name."""
    return {
        key: next(vocab[name] for name in names if name in vocab)
        for key, names in NAMES.items()
        if any(name in vocab for name in names)
    }


def convert(path: str | Path, lowercase: bool = False) -> Values:
    """Take over a `tokenizer.json`.

    What it says of padding, truncation, BOS and EOS (`post_processor`) is left out, as HugTokenizer does; so is
    dropout, with which a text would have other ids every time.

    Args:
        path: the file.
        lowercase: lower texts before its own normalizer.

    Raises:
        UserError: it is something else.
    """
    values = read_json(path)
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(values.get("added_tokens", []), list):
        raise UserError(
            f"{path} has no model or added_tokens as the tokenizers library writes them; "
            f"give a file made by its Tokenizer.save"
        )
    added = [token for token in values.get("added_tokens", []) if isinstance(token, dict)]
    special = {str(token.get("content")): token["id"] for token in added if isinstance(token.get("id"), int)}
    values.update(padding=None, truncation=None, post_processor=None)
    if "dropout" in model:
        model["dropout"] = None
    if lowercase:
        own = [values["normalizer"]] if values.get("normalizer") else []
        values["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *own]}
    return {**values, SETTINGS_KEY: special_ids(special)}
