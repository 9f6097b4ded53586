"""Finds files that ship with the package, and writes files and folders whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import UserError

PACKAGE = Path(__file__).parent.parent
"""Folder of the installed package."""


def find_shipped(path: Path | str) -> Path:
    """Return the path itself if it exists, else the file of that name that ships with the package, if any.

    Configs and tokenizers are inside an installed package and at the top of a clone, so paths such as `configs/…` and
    `tokenizers/…` work from any current folder.
    """
    if not Path(path).exists():
        for folder in (PACKAGE, PACKAGE.parent):
            if (folder / path).exists():
                return folder / path
    return Path(path)


@contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block ends without an error, that file replaces `path`.

    The temporary name keeps the suffix, because Pillow and other libraries choose the format by it. A device or a pipe
    receives the content and is never replaced: root could replace even `/dev/null`.

    Raises:
        UserError: the path cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    if is_special:
        temporary = Path(tempfile.gettempdir()) / temporary.name
    with _os_errors_for_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if is_special:
                with temporary.open("rb") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path | str, values: Any) -> Path:
    """Write values as JSON, whole or not at all.

    Raises:
        UserError: the path cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_text(format_json(values), encoding="utf-8")
    return Path(path)


def format_json(values: Any) -> str:
    """Values as indented JSON, in which only text that UTF-8 cannot encode (some file names) is escaped."""
    text = json.dumps(values, ensure_ascii=False, indent=1)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(values, indent=1)
    return text


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder to fill; if the block ends without an error, it replaces the folder `path`.

    Raises:
        UserError: the path cannot be written.
    """
    path = Path(path)
    with _os_errors_for_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        try:
            yield temporary
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                os.rename(path, old / "old")
                try:
                    os.rename(temporary, path)
                except OSError:
                    os.rename(old / "old", path)
                    raise
                finally:
                    if path.exists():  # after an interrupt between the renames `old` holds the only copy
                        shutil.rmtree(old)
            else:
                os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _os_errors_for_user(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose a writable path") from error
