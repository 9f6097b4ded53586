"""Finds the checkpoint that a name means: a shipped model, a folder, or a repository on a hub."""

from pathlib import Path

from dalle_mini_impl.checkpoint import hub
from dalle_mini_impl.checkpoint.parts import CHECKPOINT_FILES, PART_FILES
from dalle_mini_impl.checkpoint.text_tokenizer import read_text_tokenizer
from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import PACKAGE

SHIPPED_MODELS = PACKAGE / "pretrained"
"""Folder of the checkpoints inside the package."""


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a shipped model's name, of one on a hub (`hf:USER/REPO`), or else a checkpoint folder itself.

    Raises:
        UserError: there is none of them.
    """
    if str(name).startswith(hub.PREFIX):
        return hub.download(str(name), CHECKPOINT_FILES, PART_FILES)
    shipped = SHIPPED_MODELS / str(name)
    if "/" not in str(name) and (shipped / "config.yaml").is_file():
        return shipped  # a folder that happens to have this name is meant by ./emoji
    if Path(name).is_dir():
        return Path(name)
    known = ", ".join(sorted(path.parent.name for path in SHIPPED_MODELS.glob("*/config.yaml")))
    raise UserError(f"no model {str(name)!r}; expected a checkpoint folder, hf:USER/REPO or a shipped name ({known})")


def load_text_tokenizer(name: str | Path) -> TextTokenizer | JsonTokenizer:
    """The text tokenizer of a model: ours, or one that was imported."""
    return read_text_tokenizer(find_checkpoint(name))
