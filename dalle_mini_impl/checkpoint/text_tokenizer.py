"""The text tokenizer of a checkpoint folder: one of ours, or one that was imported."""

import functools
import shutil
from pathlib import Path

from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped, replace_file

TEXT_TOKENIZER_FILE = "text_tokenizer.model"
JSON_TOKENIZER_FILE = "text_tokenizer.json"
TEXT_TOKENIZER_FILES = (TEXT_TOKENIZER_FILE, JSON_TOKENIZER_FILE)


def has_text_tokenizer(folder: Path) -> bool:
    """Whether a folder has a text tokenizer, of either kind."""
    return any((folder / name).is_file() for name in TEXT_TOKENIZER_FILES)


def read_text_tokenizer(folder: Path) -> TextTokenizer | JsonTokenizer:
    """The text tokenizer of a folder.

    Raises:
        UserError: it is missing or damaged, or there are two.
    """
    ours, imported = folder / TEXT_TOKENIZER_FILE, folder / JSON_TOKENIZER_FILE
    if ours.is_file() and imported.is_file():
        raise UserError(f"{ours} and {imported.name} are both there; remove the one the model was not trained with")
    path = imported if imported.is_file() else ours
    stat = path.stat() if path.is_file() else None
    return _made(path, (stat.st_mtime_ns, stat.st_size) if stat else None)


@functools.lru_cache(4)
def _made(path: Path, _written: tuple[int, int] | None) -> TextTokenizer | JsonTokenizer:
    """A file's tokenizer. Loading a model asks for it several times, and making one of CLIP's merges takes a while."""
    return JsonTokenizer.read(path) if path.name == JSON_TOKENIZER_FILE else TextTokenizer(path)


def add_text_tokenizer(model_dir: str | Path, source: str | Path) -> TextTokenizer:
    """Copy a text tokenizer of ours into a checkpoint folder and load it.

    Raises:
        UserError: the folder already has another one, which other parts may depend on.
    """
    tokenizer = TextTokenizer(source)
    _refuse_another(Path(model_dir), tokenizer.identity, f"the config names {source}")
    with replace_file(Path(model_dir) / TEXT_TOKENIZER_FILE) as temporary:
        shutil.copyfile(find_shipped(source), temporary)
    return tokenizer


def save_text_tokenizer(model_dir: str | Path, tokenizer: JsonTokenizer) -> Path:
    """Write an imported text tokenizer into a checkpoint folder.

    Raises:
        UserError: the folder already has another one, which other parts may depend on.
    """
    _refuse_another(Path(model_dir), tokenizer.identity, "the imported one is another")
    path = Path(model_dir) / JSON_TOKENIZER_FILE
    with replace_file(path) as temporary:
        temporary.write_bytes(tokenizer.content)
    return path


def _refuse_another(folder: Path, identity: str, wanted: str) -> None:
    there = [folder / name for name in TEXT_TOKENIZER_FILES if (folder / name).is_file()]
    if there and (old := read_text_tokenizer(folder).identity) != identity:
        raise UserError(
            f"{there[0]} is text tokenizer {old}, but {wanted} ({identity}); "
            f"use another model_dir or the same tokenizer"
        )
