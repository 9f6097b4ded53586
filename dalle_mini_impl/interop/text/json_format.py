"""What the readers of all formats share: reading a file, and the JSON format of the tokenizers library."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle_mini_impl.text.caption_tokenizer import MAX_TOKENIZER_BYTES
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import read_file

TokenizerJson = dict[str, Any]
"""The content of a `text_tokenizer.json`, or of a part of it."""

COMMON_NAMES = {
    "pad_id": ("[PAD]", "<pad>", "<PAD>", "<|padding|>"),
    "bos_id": ("[CLS]", "<s>", "<bos>", "<BOS>", "[BOS]", "<|startoftext|>"),
    "eos_id": ("[SEP]", "</s>", "<eos>", "<EOS>", "[EOS]", "<|endoftext|>"),
}
"""Common names of the tokens for padding, BOS and EOS; the first that a vocabulary has is used."""


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, decompressed if it is compressed by gzip.

    Raises:
        UserError: the file cannot be read.
    """
    if not os.path.lexists(path):
        raise UserError(f"expected the file of a text tokenizer, got {path}: No such file or directory; check the path")
    content = read_file(path, MAX_TOKENIZER_BYTES, "the file of a text tokenizer", "check the path")
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_TOKENIZER_BYTES + 1)
            if len(content) > MAX_TOKENIZER_BYTES:
                raise UserError(
                    f"expected text of up to {MAX_TOKENIZER_BYTES:,} bytes in {path}, got more; give a text tokenizer"
                )
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected text in UTF-8, got byte {error.start} of {path}, which is none; if it is a SentencePiece model, "
            f"copy it into a checkpoint folder as text_tokenizer.model"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"expected a gzip file, got {path}, which is damaged ({error}); download it again") from error


def read_json(path: str | Path) -> TokenizerJson:
    """The keys and values of a JSON file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"expected JSON, got {path}, which is not: {error}; download it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"expected a JSON object, got {path}, which holds a {type(content).__name__}; "
            f"give the file of a text tokenizer"
        )
    return content


def tokenizer_json(
    model: TokenizerJson,
    *,
    normalizers: Sequence[TokenizerJson] = (),
    pre_tokenizers: Sequence[TokenizerJson] = (),
    decoders: Sequence[TokenizerJson] = (),
    special: Mapping[str, int] | None = None,
    special_after_normalizers: bool = False,
) -> TokenizerJson:
    """Complete the JSON of a tokenizer around its model.

    Args:
        model: value of the key `model`; see `bpe_model`.
        normalizers: steps that change a text, in order.
        pre_tokenizers: steps that then split it into words.
        decoders: steps that turn tokens back into text.
        special: tokens that are never split, and their ids.
        special_after_normalizers: whether special tokens are looked for in the normalised text, or in the original.
    """
    added_tokens = [
        {
            "id": token_id,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": special_after_normalizers,
            "special": True,
        }
        for name, token_id in (special or {}).items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": {"type": "Sequence", "normalizers": list(normalizers)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizers)},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": list(decoders)},
        "model": model,
    }


def bpe_model(vocab: Mapping[str, int], merges: Iterable[Sequence[str]], **options: Any) -> TokenizerJson:
    """The library's `model` for byte-pair encoding; `options` are settings of it that differ from the default."""
    unset = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **unset, **flags, **options, "vocab": dict(vocab), "merges": [list(pair) for pair in merges]}


def special_ids(vocab: Mapping[str, int]) -> dict[str, int]:
    """Ids of padding, BOS and EOS, as far as the vocabulary has them under a common name."""
    return {
        key: next(vocab[name] for name in names if name in vocab)
        for key, names in COMMON_NAMES.items()
        if any(name in vocab for name in names)
    }
