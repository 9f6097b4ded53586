"""The index of a folder's pictures: made, updated and searched."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import weights_identity
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.nearest import nearest
from dalle_mini_impl.search.store import DATABASE, Store, create, one_line_errors, only_writer
from dalle_mini_impl.search.update import Changes, update
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import contact_sheet, open_picture
from dalle_mini_impl.util.text import printable

Term: TypeAlias = str | Path | Image.Image
"""What to look for: a text, the path of a picture, or a picture."""
Query: TypeAlias = Term | Sequence[tuple[Term, float]]
"""One term, or several with weights, which are negative for what should not be there."""
LEAST_LENGTH = 1e-3
"""Of a sum of terms; what is shorter is rounding, not a direction."""
SHEET_SIZE = 160
INSIDE = ".dalle-index"
"""Where an index lies in the folder of its pictures, unless it is put elsewhere."""


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    path: Path
    score: float
    """Cosine with the query, -1 to 1. Only differences count: good fits of a text lie far below 1."""
    copies: tuple[Path, ...]
    """Other files with the same content."""


class ImageIndex:
    """Pictures of a folder and what a scorer makes of them. `open` or `create` gives one."""

    def __init__(self, store: Store, scorer: Scorer) -> None:
        self.scorer, self._store = scorer, store
        with one_line_errors(store.folder):
            made_by, name, given = store.fact("identity"), store.fact("scorer"), scorer_identity(scorer)
            if made_by != given:
                raise UserError(
                    f"the index in {store.folder} was made by scorer {made_by} ({name or 'passed from Python'}), but "
                    f"{given} was given; use the one it was made by, or make the index anew with --rebuild"
                )
            self.vectors, self._used = store.vectors()

    @classmethod
    def open(cls, folder: str | Path, scorer: Scorer | str = "", device: str = "cpu") -> "ImageIndex":
        """Open an index.

        Args:
            folder: of the index, or of pictures with the index inside.
            scorer: the one it was made with; by default what was named when it was made.
            device: where a scorer that is named computes.

        Raises:
            UserError: there is no index, it cannot be read, or another scorer made it.
        """
        store = Store(locate(folder))
        if isinstance(scorer, str):
            with one_line_errors(store.folder):
                name = scorer or store.fact("scorer")
            if not name:
                raise UserError(f"the index in {store.folder} was made by a scorer passed from Python; pass it again")
            scorer = Scorer.from_pretrained(name, device)
        return cls(store, scorer)

    @classmethod
    def create(cls, folder: str | Path, scorer: Scorer | str, device: str = "cpu") -> "ImageIndex":
        """Make an empty index, in place of one that is there.

        Args:
            folder: of the index; made if missing.
            scorer: what will embed the pictures; a named one need not be given to `open` again.
            device: where a scorer that is named computes.

        Raises:
            UserError: the folder cannot be written to, or another process writes the index.
        """
        name = ""
        if isinstance(scorer, str):
            name, scorer = lasting_name(scorer), Scorer.from_pretrained(scorer, device)
        dim, identity = str(scorer.model.embed_dim), scorer_identity(scorer)
        create(Path(folder), {"dim": dim, "identity": identity, "scorer": name})
        return cls(Store(Path(folder)), scorer)

    def __len__(self) -> int:
        """Number of different contents."""
        return len(self.vectors) if self._used is None else int(self._used.sum())

    @property
    def root(self) -> Path:
        """The folder that is indexed; the index's own until the first update.

        It is kept relative to the index, so that both can be moved together.
        """
        return (self._store.folder.resolve() / self._store.fact("root")).resolve()

    def pictures(self) -> list[tuple[Path, int]]:
        """Every picture that can be found and the row of its vector, by path."""
        with one_line_errors(self._store.folder):
            root = self.root
            return [(root / os.fsdecode(path), row) for path, row in self._store.pictures()]

    def update(self, pictures: str | Path, log: SkipLog | None = None) -> Changes:
        """Make the index what a folder of pictures is. A killed update goes on where it was.

        Args:
            pictures: the folder, searched at any depth; hidden files are ignored.
            log: takes what could not be read, and why.

        Raises:
            UserError: it is no folder, has no pictures, or is another than before, which still exists.
        """
        root = Path(pictures).resolve()
        if not root.is_dir():
            raise UserError(f"{pictures} is no folder; name one with pictures in it")
        with one_line_errors(self._store.folder), only_writer(self._store.folder):
            if self._store.fact("root") and self.root != root and self.root.is_dir():
                raise UserError(
                    f"the index in {self._store.folder} is that of {self.root}, but {root} was given; give that an "
                    f"index of its own, or turn this one into its index with --rebuild"
                )
            changes = update(self._store, self.scorer, root, SkipLog() if log is None else log)
            self.vectors, self._used = self._store.vectors()
        return changes

    def search(self, query: Query, count: int = 10, threshold: float = -1.0) -> list[Hit]:
        """The pictures that fit a query best, exactly, best first; equal ones in the order they were indexed.

        Args:
            query: a text, a picture, or several of them with weights: `[("cat", 1.0), (Path("a.jpg"), 0.5)]`.
            count: most hits; files of the same content are one.
            threshold: least score of a hit.

        Raises:
            UserError: a picture cannot be read, a text is empty, the terms cancel each other out, or `count` is
                not positive.
        """
        if count < 1:
            raise UserError(f"{count} hits were asked for; expected at least 1")
        if not len(self):
            raise UserError(f"the index in {self._store.folder} has no pictures; fill it with: dalle index DIR")
        scores, rows = nearest(self.vectors, self.embed(query), count, self._used)
        hits = []
        with one_line_errors(self._store.folder):
            root = self.root
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
                paths = [root / os.fsdecode(path) for path in self._store.paths(row)]
                if score >= threshold and paths:
                    hits.append(Hit(paths[0], score, tuple(paths[1:])))
        return hits

    def embed(self, query: Query) -> Tensor:
        """The direction (D,) of a query, of length 1: the weighted sum of its terms' directions."""
        terms = [(query, 1.0)] if isinstance(query, str | Path | Image.Image) else list(query)
        total = torch.zeros(self.vectors.shape[1])
        for term, weight in terms:
            if not math.isfinite(weight):
                raise UserError(f"weight {weight} was given for {term}; expected a number")
            total += weight * self._embed_term(term)
        if not total.norm() > LEAST_LENGTH:
            raise UserError(
                "nothing is left to look for: there are no terms, or they cancel each other out; "
                "give a text or a picture, or other weights"
            )
        return total / total.norm()

    def _embed_term(self, term: Term) -> Tensor:
        if isinstance(term, str):
            if not term.strip():
                raise UserError("an empty text came; say what to look for")
            return self.scorer.embed_texts([term])[0]
        return self.scorer.embed_images([open_picture(term) if isinstance(term, Path) else term])[0]


def scorer_identity(scorer: Scorer) -> str:
    """Hash of all that an embedding depends on: weights, text ids, and how pictures and texts are prepared."""
    weights = weights_identity({name: value.cpu() for name, value in scorer.model.state_dict().items()})
    text_tokenizer = getattr(scorer.text_tokenizer, "identity", "")
    elsewhere = ("model", "text_tokenizer", "device", "chunk_size")
    settings = {field.name: getattr(scorer, field.name) for field in fields(scorer) if field.name not in elsewhere}
    return hashlib.sha256(f"{weights} {text_tokenizer} {settings}".encode()).hexdigest()[:16]


def lasting_name(name: str) -> str:
    """The name of a scorer under which it is found from any folder."""
    library, _, folder = name.partition(":")
    if Path(name).is_dir():
        return str(find_checkpoint(name).resolve())
    return f"{library}:{Path(folder).resolve()}" if folder and Path(folder).is_dir() else name


def locate(folder: str | Path) -> Path:
    """The folder of an index: the one given, or the one inside a folder of pictures."""
    inside = Path(folder) / INSIDE
    return inside if (inside / DATABASE).is_file() else Path(folder)


def sheet(hits: Sequence[Hit], columns: int = 0) -> Image.Image:
    """Hits in one picture, best first, with scores and names; a file that is gone by now is left white.

    Raises:
        UserError: there are no hits.
    """
    images = []
    for hit in hits:
        try:
            image = open_picture(hit.path)
            image.thumbnail((SHEET_SIZE, SHEET_SIZE))
        except UserError:
            image = Image.new("RGB", (SHEET_SIZE, SHEET_SIZE), "white")
        images.append(image)
    return contact_sheet(images, columns, [printable(f"{hit.score:.3f} {hit.path.name}") for hit in hits])
