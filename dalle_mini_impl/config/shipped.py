"""The config files that ship with the package: finding, describing and copying them. Imports no torch."""

import difflib
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import PACKAGE, replace_file

FOLDER = "configs"
SUFFIX = ".yaml"


def configs_folder() -> Path:
    """Where the shipped configs lie: inside an installed package, or at the top of a checkout."""
    folders = [home / FOLDER for home in (PACKAGE, PACKAGE.parent)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def shipped_configs() -> dict[str, Path]:
    """All shipped config files by name, such as `emoji/transformer`, in alphabetical order."""
    home = configs_folder()
    return {path.relative_to(home).with_suffix("").as_posix(): path for path in sorted(home.rglob(f"*{SUFFIX}"))}


def plain_name(name: str) -> str:
    """`emoji/transformer` for any way to write it, such as `configs/emoji/transformer.yaml`."""
    return name.removeprefix(f"{FOLDER}/").removesuffix(SUFFIX).rstrip("/")


def find_configs(name: str) -> dict[str, Path]:
    """The shipped files that a name stands for: one file, or all files of a folder, by their names.

    Raises:
        UserError: nothing ships under that name.
    """
    configs, wanted = shipped_configs(), plain_name(name)
    if wanted in configs:
        return {wanted: configs[wanted]}
    inside = {known: path for known, path in configs.items() if known.startswith(f"{wanted}/")}
    if not inside:
        names = [*configs, *{known.rpartition("/")[0] for known in configs if "/" in known}]
        close = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "dalle config list prints the names"
        raise UserError(f"no shipped config is called {name!r}; {hint}")
    return inside


def purpose(path: Path) -> str:
    """What a config file is for: its first line, which is a comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def copy_configs(name: str, folder: Path) -> list[Path]:
    """Copy a shipped file, or all files of a shipped folder, into a folder.

    Args:
        name: of the file or folder.
        folder: made if it does not exist.

    Returns:
        What was written.

    Raises:
        UserError: nothing ships under that name, one of the files exists already, or the folder cannot be written to.
    """
    copies = {path: folder / path.name for path in find_configs(name).values()}
    if existing := [target for target in copies.values() if target.exists()]:
        raise UserError(f"{existing[0]} exists already; expected a folder without it, so remove it or name another")
    for path, target in copies.items():
        with replace_file(target) as temporary:
            temporary.write_bytes(path.read_bytes())
    return list(copies.values())
