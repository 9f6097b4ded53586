"""The scorer of an index: its name, and which names are trusted."""

import shlex
from contextlib import closing
from pathlib import Path

from dalle_mini_impl.checkpoint.find import find_checkpoint, is_shipped
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.store import IndexFiles, one_line_errors
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable


def absolute_scorer_name(name: str) -> str:
    """The name of a scorer with an absolute path, if it has a path: valid in any working directory."""
    library, _, folder = name.partition(":")
    if is_shipped(name):
        return name
    if Path(name).is_dir():
        return str(find_checkpoint(name).resolve())
    return f"{library}:{Path(folder).resolve()}" if folder and Path(folder).is_dir() else name


def recorded_scorer(folder: Path) -> str:
    """The scorer that an index names, if that ships with this package.

    Args:
        folder: of the index.

    Raises:
        UserError: it names another one, which has to be given, or the index cannot be read.
    """
    files = IndexFiles(folder)
    with closing(files.database), one_line_errors(folder):
        return shipped_scorer(files)


def shipped_scorer(files: IndexFiles) -> str:
    """As `recorded_scorer`, of an index that is open."""
    name = files.metadata("scorer")
    if is_shipped(name):
        return name
    if not name:
        raise UserError(
            f"expected the scorer that made the index in {files.folder}, got none; it was passed from Python "
            f"without a name, so pass it again"
        )
    raise UserError(
        f"expected --scorer for the index in {files.folder}, got none; if you trust the scorer that made it, "
        f"add --scorer {shlex.quote(printable(name))}"
    )


def load_for_new_index(scorer: Scorer | str, device: str) -> tuple[Scorer, dict[str, str]]:
    """A scorer, and the metadata of an index that it makes."""
    name = ""
    if isinstance(scorer, str):
        name = absolute_scorer_name(scorer)
        scorer = Scorer.from_pretrained(scorer, device)
    return scorer, {"dim": str(scorer.model.embed_dim), "identity": scorer_identity(scorer), "scorer": name}
