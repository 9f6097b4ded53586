"""A checkpoint folder, sent to a hub with its card."""

import re
from pathlib import Path
from typing import Any

import yaml

from dalle_mini_impl.checkpoint import hub
from dalle_mini_impl.checkpoint.describe import describe, describe_in_words
from dalle_mini_impl.checkpoint.parts import CARDS, FILES, fingerprint
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.yaml_io import read_yaml
from dalle_mini_impl.util.errors import UserError

HEADER = re.compile(r"---\n(.*?)^---\n+", re.DOTALL | re.MULTILINE)
"""The YAML between two lines with which a hub's cards begin."""
TAGS = ("dall-e", "vq-vae", "clip")


def push(folder: Path, name: str, private: bool = False, message: str = "") -> str:
    """Send a checkpoint to a hub, with its card as `README.md`, by one commit.

    Files of a checkpoint that the repository has and this one has not are deleted, so that none is ever mixed.

    Args:
        folder: the checkpoint.
        name: `hf:USER/REPO`; made if it is not there.
        private: whether only those who are let in may see it.
        message: of the commit; by default it names the checkpoint.

    Returns:
        The address of the repository.

    Raises:
        UserError: the checkpoint is incomplete, mixed or damaged, or has other files beside it, or the hub refuses.
    """
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if strange := [file for file in found if file not in FILES]:
        raise UserError(
            f"{folder} also has {', '.join(strange)}; only {', '.join(FILES)} are ever sent: move all else elsewhere"
        )
    files: dict[str, Path | bytes] = {file: folder / file for file in found if file not in CARDS}
    files["README.md"] = card(folder, name).encode()
    obsolete = [file for file in FILES if file not in files]
    return hub.upload(name, files, obsolete, private, message or f"Checkpoint {fingerprint(folder)}")


def card(folder: Path, name: str) -> str:
    """The card of a checkpoint as a hub wants it.

    Its text is that of `MODEL_CARD.md` or `README.md` in the folder, or else what `dalle info` tells. What
    `config.yaml` says is put into the header, beside what is there already.

    Args:
        folder: the checkpoint.
        name: `hf:USER/REPO`, where it will be.

    Raises:
        UserError: the card is damaged.
    """
    settings = load_settings(folder)
    path = next((folder / file for file in CARDS if (folder / file).is_file()), None)
    if path:
        header, body = _split(path)
    else:
        facts = "\n".join(describe_in_words(describe(folder)))
        header, body = (
            {},
            (
                f"# {settings.name}\n\n```\n{facts}\n```\n\n```\npip install 'dalle-mini-impl[hub]'\n"
                f'dalle sample "a red heart" --model {name}\n```\n'
            ),
        )
    header |= {"library_name": "dalle-mini-impl", "pipeline_tag": "text-to-image"}
    header["tags"] = list(dict.fromkeys([*header.get("tags", ()), *TAGS]))
    if settings.about.licence:
        header["license"] = settings.about.licence.lower()
    if settings.about.languages:
        header["language"] = list(settings.about.languages)
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _split(path: Path) -> tuple[dict[str, Any], str]:
    """The header of a card, empty where it has none, and the rest."""
    try:
        text = path.read_text(encoding="utf-8")
        match = HEADER.match(text)
        header = (read_yaml(match[1]) or {}) if match else {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not UTF-8 with YAML at its top ({' '.join(str(error).split())})") from error
    if not isinstance(header, dict) or not isinstance(header.get("tags", []), list):
        raise UserError(f"the top of {path} is {header!r}; expected keys and values, and tags a list")
    return header, text[match.end() :] if match else text
