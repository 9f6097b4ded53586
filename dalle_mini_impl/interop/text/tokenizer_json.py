"""Tokenizers saved by the tokenizers library (`Tokenizer.save`), such as DALLE-pytorch's HugTokenizer reads."""

from pathlib import Path

from dalle_mini_impl.interop.text.json_format import TokenizerJson, read_json, special_ids
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY
from dalle_mini_impl.util.errors import UserError


def convert(path: str | Path, lowercase: bool = False) -> TokenizerJson:
    """Read a `tokenizer.json`.

    Its `post_processor` (BOS and EOS), padding and truncation are dropped, as HugTokenizer ignores them; so is dropout,
    with which the ids of a text would change from call to call.

    Args:
        path: the file.
        lowercase: convert texts to lower case before the file's own normalizer.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(content.get("added_tokens", []), list):
        raise UserError(
            f"expected model and added_tokens as the tokenizers library writes them, got {path} without; "
            f"give a file made by its Tokenizer.save"
        )
    added_tokens = [token for token in content.get("added_tokens", []) if isinstance(token, dict)]
    special = {str(token.get("content")): token["id"] for token in added_tokens if isinstance(token.get("id"), int)}
    content.update(padding=None, truncation=None, post_processor=None)
    if "dropout" in model:
        model["dropout"] = None
    if lowercase:
        normalizers = [content["normalizer"]] if content.get("normalizer") else []
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *normalizers]}
    return {**content, SETTINGS_KEY: special_ids(special)}
