"""Starting a whole training from a checkpoint: which of its parts are used, and with which settings."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.train.shared.start import PARTS
from dalle_mini_impl.train.whole.settings import Settings
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a whole training starts from."""

    name: str
    """As the user names it."""
    parts: tuple[str, ...]
    """Parts whose weights are used, which are the file names of their stages."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return find_checkpoint(self.name)

    def check_settings(self, user: Settings) -> None:
        """Refuse settings of the user that the checkpoint determines.

        Raises:
            UserError: naming one.
        """
        for stage in self.parts:
            for setting in user[stage]:
                if setting.startswith(("model.", "text_length=")):
                    raise UserError(
                        f"expected settings that the checkpoint of --from leaves open, got {stage}.{setting}; leave it "
                        f"out, or --from"
                    )

    def copy_text_tokenizer(self, path: Path) -> None:
        """Copy its text tokenizer to a file.

        Raises:
            UserError: it has an imported one.
        """
        if not (self.folder / TEXT_TOKENIZER_FILE).is_file():
            raise UserError(
                f"expected {TEXT_TOKENIZER_FILE} in {self.name}, which --from names, got an imported text tokenizer or "
                f"none, with which nothing can be trained; name a checkpoint trained here"
            )
        with replace_file(path) as temporary:
            shutil.copyfile(self.folder / TEXT_TOKENIZER_FILE, temporary)


def find_origin(name: str) -> Origin | None:
    """The checkpoint of a name; None for an empty one.

    Raises:
        UserError: there is no such checkpoint, or it has no part with weights.
    """
    if not name:
        return None
    folder = find_checkpoint(name)
    parts = tuple(part for part in PARTS.values() if (folder / f"{part}.safetensors").is_file())
    if "image_tokenizer" not in parts:
        raise UserError(
            f"expected --from a checkpoint with an image tokenizer, got {name}, which has none; name another"
        )
    return Origin(name, parts)
