"""Finding the files that ship with the package, and writing files so that no reader sees half of one."""

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


def find_shipped(path: Path | str) -> Path:
    """A path as given, or, where nothing is there, the file of that name that ships with the package.

    Configs and tokenizers lie inside an installed package and at the top of a checkout; `configs/…` and
    `tokenizers/…` work from any folder in both.
    """
    if not Path(path).exists():
        for home in (PACKAGE, PACKAGE.parent):
            if (home / path).exists():
                return home / path
    return Path(path)


@contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it takes the place of `path`.

    The temporary name keeps the suffix, because Pillow and others choose the format by it. A device or a pipe is
    written to, never replaced: root could replace even `/dev/null`.

    Raises:
        UserError: the place cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    if is_special:
        temporary = Path(tempfile.gettempdir()) / temporary.name
    with _writing(path):
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


def write_json(path: Path | str, facts: Any) -> Path:
    """Write figures as JSON, whole or not at all.

    Raises:
        UserError: the place cannot be written to.
    """
    with replace_file(path) as temporary:
        temporary.write_text(format_json(facts), encoding="utf-8")
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
    """Give a temporary folder beside `path`; when the block ends well, it takes the place of `path`.

    Raises:
        UserError: the place cannot be written to.
    """
    path = Path(path)
    with _writing(path):
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
                    if path.exists():  # never the only copy, whatever came between the renames
                        shutil.rmtree(old)
            else:
                os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose a writable place") from error
