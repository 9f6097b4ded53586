"""Sends a checkpoint folder to a hub, with its model card."""

import re
from pathlib import Path
from typing import Any

import yaml

from dalle_mini_impl.checkpoint import hub
from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
from dalle_mini_impl.checkpoint.parts import CARD_FILES, CHECKPOINT_FILES, fingerprint
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.yaml_io import read_yaml
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import read_file

CARD_HEADER = re.compile(r"---\n(.*?)^---\n+", re.DOTALL | re.MULTILINE)
"""The YAML between two lines `---` at the top of a hub's model card."""
MAX_CARD_BYTES = 2**20
"""Largest model card that is read."""
TAGS = ("dall-e", "vq-vae", "clip")
"""Tags that every pushed checkpoint gets on the hub."""


def push_checkpoint(folder: Path, name: str, private: bool = False, message: str = "") -> str:
    """Send a checkpoint to a hub by one commit, with its model card as `README.md`.

    Checkpoint files that the repository has and the folder has not are deleted, so that parts of two checkpoints never
    mix.

    Args:
        folder: the checkpoint, already loaded once by the caller: its parts are not checked here.
        name: `hf:USER/REPO`; the repository is created if missing.
        private: make the repository private.
        message: commit message; by default it names the checkpoint's fingerprint.

    Returns:
        URL of the repository.

    Raises:
        UserError: the folder has other files, its card or settings are damaged, or the hub refuses.
    """
    present = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if unexpected := [file for file in present if file not in CHECKPOINT_FILES]:
        raise UserError(
            f"{folder} also has {', '.join(unexpected)}; expected nothing but {', '.join(CHECKPOINT_FILES)}; "
            f"move the other files elsewhere"
        )
    files: dict[str, Path | bytes] = {file: folder / file for file in present if file not in CARD_FILES}
    files["README.md"] = hub_card(folder, name).encode()
    obsolete = [file for file in CHECKPOINT_FILES if file not in files]
    return hub.upload(name, files, obsolete, private, message or f"Checkpoint {fingerprint(folder)}")


def hub_card(folder: Path, name: str) -> str:
    """Make the model card of a checkpoint in the form that a hub reads.

    The text is that of `MODEL_CARD.md` or `README.md` in the folder, or else the output of `dalle info`. Licence,
    languages, library, task and tags are put into the card's header; other entries of the header are kept.

    Args:
        folder: the checkpoint.
        name: `hf:USER/REPO`, where it will be.

    Raises:
        UserError: the card or `config.yaml` is damaged.
    """
    settings = load_settings(folder)
    path = next((folder / file for file in CARD_FILES if (folder / file).is_file()), None)
    header, body = _split_card(path) if path else ({}, _generated_card(folder, settings.name, name))
    header |= {"library_name": "dalle-mini-impl", "pipeline_tag": "text-to-image"}
    header["tags"] = list(dict.fromkeys([*header.get("tags", ()), *TAGS]))
    if settings.about.licence:
        header["license"] = settings.about.licence.lower()
    if settings.about.languages:
        header["language"] = list(settings.about.languages)
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _generated_card(folder: Path, title: str, name: str) -> str:
    """Text of a card for a checkpoint without one."""
    info = "\n".join(info_lines(checkpoint_info(folder)))
    return (
        f"# {title}\n\n```\n{info}\n```\n\nIn a clone of dalle-mini-impl:\n\n"
        f"```\npip install -c constraints.txt '.[hub]'\ndalle sample \"a red heart\" --model {name}\n```\n"
    )


def _split_card(path: Path) -> tuple[dict[str, Any], str]:
    """Split a card into its header, empty if it has none, and its text."""
    content = read_file(path, MAX_CARD_BYTES, "model card", "shorten it")
    try:
        text = content.decode("utf-8")
        match = CARD_HEADER.match(text)
        header = (read_yaml(match[1]) or {}) if match else {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}); expected UTF-8 text with YAML at its top") from error
    if not isinstance(header, dict) or not isinstance(header.get("tags", []), list):
        raise UserError(f"the top of {path} is {header!r}; expected keys and values, and tags a list")
    return header, text[match.end() :] if match else text
