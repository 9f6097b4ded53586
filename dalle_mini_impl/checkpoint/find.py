"""Finds the checkpoint that a name means: a shipped model, a folder, or a repository on a hub."""

from pathlib import Path

from dalle_mini_impl.checkpoint import hub
from dalle_mini_impl.checkpoint.parts import CHECKPOINT_FILES, PART_FILES
from dalle_mini_impl.checkpoint.text_tokenizer import read_text_tokenizer
from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import PACKAGE
from dalle_mini_impl.util.read_files import is_file

SHIPPED_MODELS = PACKAGE / "pretrained"
"""Folder of the checkpoints inside the package."""


def find_checkpoint(name: str | Path) -> Path:
    """Return the folder of a checkpoint; one on a hub is downloaded first.

    Args:
        name: name of a shipped model such as `emoji`, `hf:USER/REPO`, or a checkpoint folder.

    Raises:
        UserError: there is no such checkpoint.
    """
    if str(name).startswith(hub.PREFIX):
        return hub.download(str(name), CHECKPOINT_FILES, PART_FILES)
    if is_shipped(name):
        return SHIPPED_MODELS / str(name)  # a folder of the same name in the current folder is named ./emoji
    try:
        if Path(name).is_dir():
            return Path(name)
    except PermissionError as error:
        raise UserError(
            f"cannot read model {name}: permission denied; change the access rights of its folder"
        ) from error
    except (OSError, ValueError):  # a name that no folder can have
        pass
    known = ", ".join(sorted(path.parent.name for path in SHIPPED_MODELS.glob("*/config.yaml")))
    raise UserError(
        f"no model {str(name)[:200]!r}; expected a checkpoint folder, hf:USER/REPO or a shipped name ({known})"
    )


def check_own_folder(name: str | Path) -> Path:
    """The folder of a checkpoint that may be changed.

    Raises:
        UserError: it is a shipped model or one on a hub, or there is none.
    """
    if is_shipped(name) or str(name).startswith(hub.PREFIX):
        raise UserError(f"expected a checkpoint folder of your own to change, got {name}; copy it first, or leave it")
    return find_checkpoint(name)


def is_shipped(name: str | Path) -> bool:
    """Whether a name is that of a checkpoint inside the package."""
    return str(name) != "" and "/" not in str(name) and is_file(SHIPPED_MODELS / str(name) / "config.yaml")


def load_text_tokenizer(name: str | Path) -> TextTokenizer | JsonTokenizer:
    """Load the text tokenizer of a checkpoint, by any name that `find_checkpoint` takes.

    Raises:
        UserError: there is no such checkpoint, or its text tokenizer is missing or damaged.
    """
    return read_text_tokenizer(find_checkpoint(name))
