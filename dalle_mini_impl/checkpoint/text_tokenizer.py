"""The text tokenizer of a checkpoint folder: trained by this package, or imported with a model."""

import functools
import os
import shutil
from pathlib import Path

from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped, replace_file
from dalle_mini_impl.util.read_files import is_file

TEXT_TOKENIZER_FILE = "text_tokenizer.model"
"""A SentencePiece model trained by this package."""
JSON_TOKENIZER_FILE = "text_tokenizer.json"
"""An imported tokenizer in the format of the `tokenizers` library."""
TEXT_TOKENIZER_FILES = (TEXT_TOKENIZER_FILE, JSON_TOKENIZER_FILE)


def has_text_tokenizer(folder: Path) -> bool:
    """Whether a folder has a text tokenizer of either kind."""
    return any(is_file(folder / name) for name in TEXT_TOKENIZER_FILES)


def read_text_tokenizer(folder: Path) -> TextTokenizer | JsonTokenizer:
    """Read the text tokenizer of a folder.

    Raises:
        UserError: it is missing or damaged, or there are two.
    """
    trained = folder / TEXT_TOKENIZER_FILE
    imported = folder / JSON_TOKENIZER_FILE
    if is_file(trained) and is_file(imported):
        raise UserError(
            f"expected one text tokenizer, got {trained} and {imported.name}; "
            f"remove the one that the model was not trained with"
        )
    path = imported if is_file(imported) else trained
    if not os.path.lexists(path) and os.access(folder, os.X_OK):
        raise UserError(
            f"expected {' or '.join(TEXT_TOKENIZER_FILES)} in {folder}, got neither; train a text tokenizer, or add "
            f"the one that an imported model was trained with: dalle import text-tokenizer FILE --out {folder}"
        )
    stat = path.stat() if is_file(path) else None
    return _read_cached(path, (stat.st_mtime_ns, stat.st_size) if stat else None)


@functools.lru_cache(4)
def _read_cached(path: Path, _version: tuple[int, int] | None) -> TextTokenizer | JsonTokenizer:
    """Read a file, once per `_version` (time and size): loading a model needs its tokenizer repeatedly, and building
    CLIP's takes long.
    """
    return JsonTokenizer.read(path) if path.name == JSON_TOKENIZER_FILE else TextTokenizer(path)


def add_text_tokenizer(model_dir: str | Path, source: str | Path) -> TextTokenizer:
    """Copy a SentencePiece model into a checkpoint folder and load it.

    Args:
        model_dir: the checkpoint folder; created if missing.
        source: the `.model` file; names under `tokenizers/` also find the files that ship with the package.

    Raises:
        UserError: the folder already has a different one, which other parts may depend on.
    """
    tokenizer = TextTokenizer(source)
    _refuse_different(Path(model_dir), tokenizer.identity, f"the config names {source}")
    with replace_file(Path(model_dir) / TEXT_TOKENIZER_FILE) as temporary:
        shutil.copyfile(find_shipped(source), temporary)
    return tokenizer


def save_text_tokenizer(model_dir: str | Path, tokenizer: JsonTokenizer) -> Path:
    """Write an imported text tokenizer into a checkpoint folder.

    Raises:
        UserError: the folder already has a different one, which other parts may depend on.
    """
    _refuse_different(Path(model_dir), tokenizer.identity, "the imported one differs")
    path = Path(model_dir) / JSON_TOKENIZER_FILE
    with replace_file(path) as temporary:
        temporary.write_bytes(tokenizer.content)
    return path


def _refuse_different(folder: Path, identity: str, new: str) -> None:
    present = [folder / name for name in TEXT_TOKENIZER_FILES if is_file(folder / name)]
    if present and (old := read_text_tokenizer(folder).identity) != identity:
        raise UserError(
            f"{present[0]} is text tokenizer {old}, but {new} ({identity}); use another model_dir or the same tokenizer"
        )
