"""The real pictures that generated ones are compared with: each with its concept, its vendor and its captions.

In the emoji set the source names concept and vendor. Pictures of any other set are of the same concept if they have
the same caption, and each has a vendor of its own.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.entries import PictureEntry
from dalle_mini_impl.data.pair import Caption, caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.evaluate.data import store_config
from dalle_mini_impl.evaluate.feature_cache import (
    cache_key,
    cache_path,
    read_features,
    store_fingerprint,
    write_features,
)
from dalle_mini_impl.evaluate.judges import Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.util.errors import UserError

CHUNK = 128
"""Pictures given to the judges at a time."""


@dataclass(frozen=True, eq=False)
class ReferencePictures:
    """Every picture of a store, of both splits."""

    folder: Path
    """Of the store."""
    store: PictureStore
    size: tuple[int, int]
    """Height and width in pixels at which judges get all pictures, real and drawn."""
    concept_ids: Tensor
    """(n,) int64, concept of each picture."""
    vendor_ids: Tensor
    """(n,) int64, vendor of each picture: an index into `vendor_names`, or of the picture itself in sets without."""
    vendor_names: tuple[str, ...]
    """Empty in sets without vendors, whose concepts are captions."""

    @property
    def concept_count(self) -> int:
        """Number of concepts."""
        return int(self.concept_ids.max()) + 1

    @property
    def has_vendors(self) -> bool:
        """Whether several vendors drew the same concepts, as in the emoji set."""
        return bool(self.vendor_names)

    def of_split(self, split: str) -> Tensor:
        """(n,) bool: which pictures are of this split."""
        return torch.tensor([entry.split == split for entry in self.store.entries])

    def has_split(self, split: str) -> bool:
        """Whether any picture is of this split."""
        return bool(self.of_split(split).any())

    def pixels(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
        """Pictures on white, (len(indices), 3, *size) in [-1, 1]; of the judges' size where none is given."""
        return pixels_on_white(self.store.take(np.asarray(indices)), size or self.size)

    def indices(self, split: str, kinds: Sequence[str]) -> list[int]:
        """Pictures of one split and some kinds, ordered by key, so that the order of storage has no influence."""
        entries = self.store.entries
        selected = [
            index
            for index, entry in enumerate(entries)
            if entry.split == split and entry.details.get("kind", "plain") in kinds
        ]
        return sorted(selected, key=lambda index: entries[index].key)


def open_reference_pictures(data: str | Path, size: int | tuple[int, int]) -> ReferencePictures:
    """Open a store, or make one from a source.

    Where every picture has a `concept` and a `vendor`, as in the emoji set, these count. In other sets pictures are
    of the same concept if their first captions are equal but for case, spaces and marks at the end.

    Args:
        data: a picture store, or a source as in `evaluate.data.store_config`.
        size: side of a square, or height and width, in pixels, at which judges get the pictures.

    Raises:
        UserError: `data` does not exist, or has pictures of fewer than two concepts.
    """
    config = store_config(data)
    stores = open_splits(config)
    rows = np.concatenate([store.rows for store in stores])
    entries = stores[0].entries.of_rows(rows)
    if all({"concept", "vendor"} <= entry.details.keys() for entry in entries):
        concept_ids, concepts = _index_names([entry.details["concept"] for entry in entries])
        vendor_ids, vendor_names = _index_names([entry.details["vendor"] for entry in entries])
    else:
        concept_ids, concepts = _index_names([caption_key(first_caption(entry)) for entry in entries])
        vendor_ids, vendor_names = torch.arange(len(entries)), ()
    if len(concepts) < 2:
        raise UserError(
            f"expected pictures with at least two different captions, among which the right one can be found, got "
            f"{len(entries)} of {concepts[0]!r} in {data}; add pictures"
        )
    store = PictureStore(stores[0].pixels, rows, entries)
    height, width = (size, size) if isinstance(size, int) else size
    return ReferencePictures(Path(config.store), store, (height, width), concept_ids, vendor_ids, vendor_names)


def open_splits(config: DataConfig) -> list[PictureStore]:
    """The training and the validation pictures of a store; a split without pictures is left out.

    Raises:
        UserError: both are without, or the store cannot be opened.
    """
    stores, errors = [], []
    for split in ("train", "validation"):
        try:
            stores.append(open_store(config, split))
        except UserError as error:  # all that could be wrong with the store, both splits have in common
            errors.append(error)
    if not stores:
        raise errors[0]
    return stores


def build_r_precisions(
    reference: ReferencePictures,
    judges: Mapping[str, Judge],
    progress: Callable[[int], object] = lambda pictures: None,
) -> dict[str, RPrecision]:
    """R-precision by each judge, with features from the cache beside the store where it has them.

    Args:
        reference: the pictures.
        judges: by name.
        progress: called with the number of pictures each step has processed.
    """
    features = reference_features(reference, judges, progress)
    return {
        name: build_r_precision(judge, features[name], reference.concept_ids, reference.vendor_ids)
        for name, judge in judges.items()
    }


def reference_features(
    reference: ReferencePictures,
    judges: Mapping[str, Judge],
    progress: Callable[[int], object] = lambda pictures: None,
) -> dict[str, Tensor]:
    """Features (n, D) of all reference pictures by each judge, read from the cache or computed and written to it."""
    fingerprint = store_fingerprint(reference.folder)
    paths = {name: cache_path(reference.folder, name, reference.size) for name in judges}
    keys = {name: cache_key(judge.identity, fingerprint, reference.size) for name, judge in judges.items()}
    features = {name: read_features(paths[name], keys[name], len(reference.store)) for name in judges}
    missing = [name for name in judges if features[name] is None]
    parts: dict[str, list[Tensor]] = {name: [] for name in missing}
    for chunk in torch.arange(len(reference.store)).split(CHUNK):
        if missing:
            pixels = reference.pixels(chunk.tolist())
            for name in missing:
                parts[name].append(judges[name].features(pixels))
        progress(len(chunk))
    for name in missing:
        computed = torch.cat(parts[name])
        features[name] = computed
        try:
            write_features(paths[name], keys[name], computed)
        except UserError as error:  # a store on a read-only disk can still be used
            warnings.warn(f"features of judge {name} are not kept for the next run: {error}", stacklevel=2)
    return {name: values for name, values in features.items() if values is not None}


def has_features(reference: ReferencePictures, judge: Judge) -> bool:
    """Whether the features of all reference pictures by a judge lie in the cache."""
    key = cache_key(judge.identity, store_fingerprint(reference.folder), reference.size)
    return (
        read_features(cache_path(reference.folder, judge.name, reference.size), key, len(reference.store)) is not None
    )


def prompt_of(entry: PictureEntry, language: str = "", with_style: bool = True) -> str | None:
    """A picture's first name in a language, with or without the vendor's style word.

    The emoji set lists each caption first without and then with the style word: `heart`, `heart, flat`.

    Args:
        entry: of the picture.
        language: code of a language; empty for that of `first_caption`.
        with_style: whether to name the style.

    Returns:
        None where there is no caption in this language.
    """
    first = first_caption(entry)
    texts = [caption.text for caption in entry.captions if caption.language == (language or first.language)]
    if not texts:
        return None
    name = texts[0]
    styled_names = (text for previous, text in pairwise(texts) if previous == name and text.startswith(f"{name}, "))
    return next(styled_names, name) if with_style else name


def first_caption(entry: PictureEntry) -> Caption:
    """The first English caption, or the first of all if there is none."""
    return caption_in_language(entry.captions, "en")


def caption_key(caption: Caption) -> str:
    """Text that is equal for captions that differ in case, spaces and marks at the end (`clean_caption`) only."""
    return " ".join(clean_caption(caption.text).casefold().split())


def _index_names(names: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Index of each name among the sorted distinct names, (n,) int64, and these."""
    distinct = sorted(set(names))
    index_of = {name: index for index, name in enumerate(distinct)}
    return torch.tensor([index_of[name] for name in names]), tuple(distinct)
