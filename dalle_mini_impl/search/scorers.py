"""The scorer of an index: its identity, its name, and which names are trusted."""

import hashlib
import shlex
from contextlib import closing
from dataclasses import fields
from pathlib import Path

from dalle_mini_impl.checkpoint.find import find_checkpoint, is_shipped
from dalle_mini_impl.checkpoint.parts import weights_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.store import IndexFiles, one_line_errors
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable


def scorer_identity(scorer: Scorer) -> str:
    """Hash of everything that an embedding depends on: weights, text ids, and how pictures and texts are prepared.

    It includes the names of the fields of `Scorer` and `Preprocess`: renaming one makes existing indexes unusable.
    """
    weights = weights_identity({name: value.cpu() for name, value in scorer.model.state_dict().items()})
    text_tokenizer = getattr(scorer.text_tokenizer, "identity", "")
    without_influence = ("device", "chunk_size")
    hashed_above = ("model", "text_tokenizer")
    settings = {
        field.name: getattr(scorer, field.name)
        for field in fields(scorer)
        if field.name not in (*hashed_above, *without_influence)
    }
    return hashlib.sha256(f"{weights} {text_tokenizer} {settings}".encode()).hexdigest()[:16]


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
