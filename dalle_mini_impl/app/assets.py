"""Style sheet and scripts of the page, which are files beside this one."""

from pathlib import Path

FOLDER = Path(__file__).parent


def read_asset(name: str) -> str:
    """The content of a file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")
