"""The index of a folder's pictures: create, update and search it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.remote import SourcePath, is_address, source_path
from dalle_mini_impl.data.sample import UnusableSample, decode_picture, read_bytes
from dalle_mini_impl.data.tar_reader import TarMember
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.embedding import embed_here, embed_on_ray
from dalle_mini_impl.search.integrity import DATABASE
from dalle_mini_impl.search.listing import check_source, list_source
from dalle_mini_impl.search.nearest import nearest
from dalle_mini_impl.search.scorers import load_for_new_index, shipped_scorer
from dalle_mini_impl.search.store import (
    DEFAULT_FOLDER,
    IN_TAR,
    IndexFiles,
    check_is_ours,
    create_files,
    one_line_errors,
    replacing_files,
    write_lock,
)
from dalle_mini_impl.search.update import Changes, check_has_pictures, check_still_tars, update_index
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import contact_sheet, open_picture
from dalle_mini_impl.util.ray_workers import RayWorkers
from dalle_mini_impl.util.text import printable

Term: TypeAlias = str | Path | Image.Image
"""Part of a query: a text, the path of a picture, or a picture."""
Query: TypeAlias = Term | Sequence[tuple[Term, float]]
"""One term, or several with weights; a negative weight searches away from its term."""
MIN_NORM = 1e-3
"""Least norm of a sum of terms; a smaller one is rounding error without a direction."""
ROOT_SAMPLE = 16
"""Pictures that are looked for to find out where the indexed folder is."""
SHEET_SIZE = 160
"""Largest side in pixels of a picture on a sheet of hits."""


@dataclass(frozen=True)
class Hit:
    """A result of a search."""

    path: SourcePath | TarMember
    score: float
    """Cosine with the query, in [-1, 1]. Only differences are meaningful: good fits of a text are far below 1."""
    copies: tuple[SourcePath | TarMember, ...]
    """Other files of equal content."""


class ImageIndex:
    """Embeddings of a folder's pictures by a scorer, searched by texts and pictures. Use `open` or `create`.

    Args:
        files: of the index.
        scorer: the one that the index was made with.

    Raises:
        UserError: another scorer made the index, or the index is damaged.
    """

    def __init__(self, files: IndexFiles, scorer: Scorer) -> None:
        self.scorer = scorer
        self._load(files)

    def _load(self, files: IndexFiles) -> None:
        self._files = files
        with one_line_errors(files.folder):
            expected = files.metadata("identity")
            identity = scorer_identity(self.scorer)
            if expected != identity:
                name = printable(files.metadata("scorer")) or "passed from Python"
                raise UserError(
                    f"expected scorer {printable(expected)} ({name}), which made the index in {files.folder}, got "
                    f"{identity}; use that scorer, or make the index again with --rebuild"
                )
            if files.dim != self.scorer.model.embed_dim:
                raise ValueError(f"its vectors are {files.dim} wide, those of its scorer {self.scorer.model.embed_dim}")
            self._load_vectors()

    def _load_vectors(self) -> None:
        self.vectors, self._used, self._damaged = self._files.vectors()

    @classmethod
    def open(cls, folder: str | Path, scorer: Scorer | str = "", device: str = "cpu") -> "ImageIndex":
        """Open an index.

        Args:
            folder: of the index, or of pictures with the index in `.dalle-index`.
            scorer: the one it was made with, or its name. By default the one that the index names, if that ships with
                this package: an index may be a stranger's, and no other scorer is loaded only because it says so.
            device: where a scorer given by name computes.

        Raises:
            UserError: there is no index, it cannot be read, another scorer made it, or its scorer has to be given.
        """
        files = IndexFiles(find_index_folder(folder))
        if isinstance(scorer, str):
            with one_line_errors(files.folder):
                scorer = Scorer.from_pretrained(scorer or shipped_scorer(files), device)
        return cls(files, scorer)

    @classmethod
    def create(
        cls, folder: str | Path, scorer: Scorer | str, device: str = "cpu", *, replace: bool = True
    ) -> "ImageIndex":
        """Make an empty index.

        Args:
            folder: of the index; made if missing.
            scorer: embeds the pictures; its name is remembered.
            device: where a scorer given by name computes.
            replace: whether to replace an index that exists; else that one is opened.

        Raises:
            UserError: the folder cannot be written to, holds something else, or another process writes the index.
        """
        folder = Path(folder)
        scorer, metadata = load_for_new_index(scorer, device)
        with one_line_errors(folder), write_lock(folder):
            if replace or not (folder / DATABASE).is_file():
                check_is_ours(folder)
                create_files(folder, metadata)
            return cls(IndexFiles(folder), scorer)

    @classmethod
    def rebuild(
        cls,
        folder: str | Path,
        scorer: Scorer | str,
        pictures: str | Path,
        log: SkipLog | None = None,
        device: str = "cpu",
        workers: RayWorkers[tuple[Scorer, str]] | None = None,
    ) -> tuple["ImageIndex", Changes]:
        """Index a folder of pictures anew. An existing index is replaced when the new one is whole, not before.

        Args:
            folder: of the index; made if missing.
            scorer: embeds the pictures; its name is remembered.
            pictures: as for `update`.
            log: as for `update`.
            device: where a scorer given by name computes.
            workers: as for `update`.

        Raises:
            UserError: as for `create` and `update`.
        """
        folder = Path(folder)
        log = SkipLog() if log is None else log
        check_source(pictures)
        scorer, metadata = load_for_new_index(scorer, device)
        with one_line_errors(folder), write_lock(folder):
            check_is_ours(folder)
            listing = list_source(pictures, log)
            check_has_pictures(listing)
            embed = embed_on_ray(scorer, workers) if workers else embed_here(scorer)
            with replacing_files(folder, metadata) as files:
                changes = update_index(files, embed, listing, log)
            return cls(IndexFiles(folder), scorer), changes

    def __len__(self) -> int:
        """Number of different contents."""
        return len(self.vectors) if self._used is None else int(self._used.sum())

    @property
    def root(self) -> SourcePath:
        """The folder that is indexed; the index's own folder until the first update.

        It is recorded relative to the index, so that both can be moved together, and absolutely, so that the index can
        be moved alone. The one under which more of the pictures are found counts.
        """
        with one_line_errors(self._files.folder):
            if is_address(self._files.metadata("root")):
                return source_path(self._files.metadata("root"))
            here = (self._files.folder.resolve() / self._files.metadata("root")).resolve()
            absolute = Path(self._files.metadata("absolute_root") or here)
            if absolute == here:
                return here
            sample = [os.fsdecode(path.partition(IN_TAR)[0]) for path in self._files.some_paths(ROOT_SAMPLE)]
            return max((here, absolute), key=lambda root: sum((root / path).exists() for path in sample))

    def pictures(self) -> list[tuple[SourcePath | TarMember, int]]:
        """Every picture that can be found, with the row of its vector, ordered by path."""
        self._check_whole()
        with one_line_errors(self._files.folder):
            root = self.root
            return [(_inside(root, path), row) for path, row in self._files.pictures()]

    def update(
        self,
        pictures: str | Path,
        log: SkipLog | None = None,
        workers: RayWorkers[tuple[Scorer, str]] | None = None,
    ) -> Changes:
        """Update the index from a folder of pictures. An update that was killed continues after its last commit.

        Args:
            pictures: the folder, here or at an address, searched at any depth, hidden files ignored; or, where it holds
                none, the tars directly in it; or tars by a path or pattern such as `set-{000..007}.tar`.
            log: records what could not be read, and why.
            workers: of a Ray cluster, made by `embedding.make_worker`, which embed; this process, if there are none.

        Returns:
            Numbers of new, unchanged, unreadable and removed pictures.

        Raises:
            UserError: it is neither a folder nor tars, has no pictures, has pictures beside tars that are indexed, or
                is not the indexed folder, which still exists.
        """
        log = SkipLog() if log is None else log
        with one_line_errors(self._files.folder), write_lock(self._files.folder):
            self._load(IndexFiles(self._files.folder))  # another process may have replaced it since it was opened
            listing = list_source(pictures, log)
            if self._files.metadata("root") and self.root != listing.root and self.root.is_dir():
                raise UserError(
                    f"expected {self.root}, the folder of the index in {self._files.folder}, got {listing.root}; "
                    f"give that folder an index of its own, or replace this one with --rebuild"
                )
            check_has_pictures(listing)
            check_still_tars(self._files, listing)
            embed = embed_on_ray(self.scorer, workers) if workers else embed_here(self.scorer)
            with self._files.writing():
                changes = update_index(self._files, embed, listing, log)
            self._load_vectors()
        return changes

    def search(self, query: Query, keep: int = 10, threshold: float = -1.0) -> list[Hit]:
        """The pictures with the highest cosines, exactly, best first; equal ones in the order of their indexing.

        Args:
            query: a text, a picture, or several of them with weights: `[("cat", 1.0), (Path("a.jpg"), 0.5)]`.
            keep: most hits; files of equal content are one hit.
            threshold: least score of a hit.

        Raises:
            UserError: a picture cannot be read, a text is empty, the terms cancel each other out, or `keep` is not
                positive.
        """
        if keep < 1:
            raise UserError(f"expected keep of at least 1, got {keep}; ask for one hit or more")
        if not len(self) and not self._damaged:
            raise UserError(
                f"expected pictures in the index in {self._files.folder}, got none; fill it with: dalle index DIR"
            )
        self._check_whole()
        if math.isnan(threshold):
            raise UserError("expected a number as threshold, got nan; leave it out to see every hit")
        scores, rows = nearest(self.vectors, self.embed(query), keep, self._used)
        hits = []
        with one_line_errors(self._files.folder):
            root = self.root
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
                paths = [_inside(root, path) for path in self._files.paths(row)]
                if score >= threshold and paths:
                    hits.append(Hit(paths[0], score, tuple(paths[1:])))
        return hits

    def embed(self, query: Query) -> Tensor:
        """The embedding (D,) of a query, of unit length: the weighted sum of its terms' embeddings, normalised.

        Raises:
            UserError: as for `search`.
        """
        terms = [(query, 1.0)] if isinstance(query, str | Path | Image.Image) else list(query)
        total = torch.zeros(self.vectors.shape[1])
        for term, weight in terms:
            if not math.isfinite(weight):
                raise UserError(f"expected a number as weight of {term}, got {weight}; correct it")
            total += weight * self._embed_term(term)
        if not total.isfinite().all():
            raise UserError(
                "expected a query with a direction, got an embedding that is not finite from the scorer, or weights "
                "that are too large; choose others"
            )
        if total.norm() <= MIN_NORM:
            raise UserError(
                "expected a query with a direction, got no terms, or terms that cancel each other out; "
                "give a text or a picture, or other weights"
            )
        return total / total.norm()

    def _check_whole(self) -> None:
        if self._damaged:
            raise UserError(
                f"expected the vectors of {len(self)} different pictures in the index in {self._files.folder}, got "
                f"{len(self._damaged)} of them lost or damaged; restore them with: dalle index DIR"
            )

    def _embed_term(self, term: Term) -> Tensor:
        if isinstance(term, str):
            if not term.strip():
                raise UserError("expected a text, got an empty one; describe what to search for")
            return self.scorer.embed_texts([term])[0]
        return self.scorer.embed_images([open_picture(term) if isinstance(term, Path) else term])[0]


def _inside(root: SourcePath, path: bytes) -> SourcePath | TarMember:
    """The path of a picture of an index, which may be a stranger's.

    Raises:
        ValueError: it leads out of the indexed folder.
    """
    file, in_tar, member = path.partition(IN_TAR)
    parts = os.fsdecode(file).split("/")
    if ".." in parts or not parts[0]:
        raise ValueError(f"the path {printable(os.fsdecode(path))} leads out of its folder")
    found = root / os.fsdecode(file)
    return TarMember(found, os.fsdecode(member)) if in_tar else found


def find_index_folder(folder: str | Path) -> Path:
    """The folder of an index: the one given, or `.dalle-index` in a folder of pictures."""
    inside = Path(folder) / DEFAULT_FOLDER
    return inside if (inside / DATABASE).is_file() else Path(folder)


def hits_sheet(hits: Sequence[Hit], columns: int = 0) -> Image.Image:
    """Hits in one picture, best first, with scores and names; a file that cannot be read any more is white.

    Args:
        hits: at least one.
        columns: pictures per row; 0 makes the sheet about square.

    Raises:
        UserError: there are no hits.
    """
    images = [small_copy(hit.path, SHEET_SIZE) for hit in hits]
    return contact_sheet(images, columns, [printable(f"{hit.score:.3f} {hit.path.name}") for hit in hits])


def small_copy(path: SourcePath | TarMember, side: int) -> Image.Image:
    """A picture file, reduced to `side` pixels at most; white if it cannot be read any more."""
    try:
        content = path.read_bytes() if isinstance(path, TarMember) else read_bytes(path)
        image = decode_picture(content)
        image.thumbnail((side, side))
    except UnusableSample:
        return Image.new("RGB", (side, side), "white")
    return image
