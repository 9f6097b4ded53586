"""Image ids of pictures that an image tokenizer has encoded, memory-mapped, with their captions.

A cache is a folder with `cache.json` (identity of the image tokenizer, grid, K) and one folder per split with
`image_ids.npy` (n, variants, h, w) uint16 and what else is known of each picture (`entries.py`). Another image
tokenizer decodes the same ids to other pictures, so a cache is opened only for the tokenizer that made it.

A cache encoded with `soft_ids` also has `likely_ids.npy` (n, variants, h, w, k) uint16, the k most probable ids of each
cell, and `shares.npy` of the same shape, float16, their probabilities. One encoded with `image_embed` has
`image_embed.npy` (n, variants, D) float16, an embedding of each picture by the scorer that `cache.json` names.
"""

import hashlib
import json
import os
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from dalle_mini_impl.data.checksums import (
    VERIFIED_FILE,
    check_checksums,
    open_array,
    read_header_file,
    verify_once,
    write_header_file,
)
from dalle_mini_impl.data.entries import ENTRY_FILES, PictureEntries, PictureEntry, concept_indices
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import source_changes, store_version
from dalle_mini_impl.text.caption_tokenizer import shorten
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable

HEADER_FILE = "cache.json"
IMAGE_IDS_FILE = "image_ids.npy"
LIKELY_IDS_FILE = "likely_ids.npy"
PROBABILITIES_FILE = "shares.npy"
IMAGE_EMBED_FILE = "image_embed.npy"
CONTENTS = (HEADER_FILE, "train", "validation", VERIFIED_FILE)
"""What a cache's folder holds; the first marks it."""
SPLIT_CONTENTS = (IMAGE_IDS_FILE, *ENTRY_FILES, LIKELY_IDS_FILE, PROBABILITIES_FILE, IMAGE_EMBED_FILE)
"""What the folder of a split holds."""
MAX_IDS = 2**16
"""Largest codebook whose ids fit into uint16."""
CHECKED_NUMBERS = 2**22
"""Ids whose range is checked at a time, which bounds memory."""


@dataclass(frozen=True)
class CacheHeader:
    """What a cache was made with."""

    image_tokenizer: str
    """Identity of the image tokenizer."""
    codebook_size: int
    """K."""
    grid: tuple[int, int]
    """Token grid (h, w)."""
    source: str = ""
    """Name of the folder or file that the pictures came from; empty in caches of old versions."""
    store: str = ""
    """The picture store that was encoded, as a path from the cache; empty in caches of old versions."""
    store_version: str = ""
    """Tells whether that store has still the same content."""
    checksums: dict[str, str] = field(default_factory=dict)
    """Of the other files, by their path in the cache; empty in caches of old versions."""
    scorer: str = ""
    """Identity of the scorer of the image embeddings, if they are stored."""
    first_unchanged: bool = False
    """Whether the first of several variants of each training picture is not augmented."""


@dataclass(frozen=True)
class TokenCache:
    """One split of a cache."""

    header: CacheHeader
    image_ids: np.ndarray
    """(n, variants, h, w) uint16, memory-mapped."""
    entries: PictureEntries
    """Captions and details of each picture."""
    likely_ids: np.ndarray | None = None
    """(n, variants, h, w, k) uint16, memory-mapped: the most probable ids of each cell, if stored."""
    probabilities: np.ndarray | None = None
    """(n, variants, h, w, k) float16, memory-mapped: probabilities of `likely_ids`."""
    image_embed: np.ndarray | None = None
    """(n, variants, D) float16, memory-mapped: embeddings of length 1 by the scorer in the header, if stored."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def version(self) -> str:
        """Tells caches of other ids or captions apart; empty in caches of old versions."""
        text = json.dumps(self.header.checksums, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if self.header.checksums else ""

    def distribution(self, index: int, variant: int) -> tuple[np.ndarray, np.ndarray]:
        """The most probable ids (h, w, k) int64 of one picture, and their probabilities (h, w, k) float32.

        The probabilities sum to 1 in each cell.

        Raises:
            UserError: the cache does not have them.
        """
        if self.likely_ids is None or self.probabilities is None:
            raise UserError(
                "the token cache has only the chosen ids, expected the likeliest ones and their "
                "probabilities; encode again with soft_ids=16, or set image_targets=argmax"
            )
        probabilities = self.probabilities[index, variant].astype(np.float32)
        return self.likely_ids[index, variant].astype(np.int64), probabilities / probabilities.sum(-1, keepdims=True)

    def embed(self, index: int, variant: int) -> np.ndarray:
        """The embedding (D,) float32 of one variant of a picture; `check_embeddings` has found that there is one."""
        assert self.image_embed is not None
        return self.image_embed[index, variant].astype(np.float32)

    def check_embeddings(self, scorer: str) -> None:
        """Refuse a cache without image embeddings, or with those of another scorer.

        Args:
            scorer: identity of the scorer that is meant.

        Raises:
            UserError: naming both.
        """
        if self.image_embed is None:
            raise UserError(
                "expected a token cache with image embeddings for image_embed.positions, got one without; encode again "
                "with image_embed=true"
            )
        if self.header.scorer != scorer:
            raise UserError(
                f"expected image embeddings of scorer {scorer}, which the model has, got those of {self.header.scorer} "
                f"in the token cache; encode again with this scorer"
            )

    def check_first_unchanged(self) -> None:
        """Refuse a cache of training pictures in which nothing tells augmented variants from others.

        Raises:
            UserError: the first variants are augmented too, or are the only ones.
        """
        if not self.header.first_unchanged or self.image_ids.shape[1] < 2:
            raise UserError(
                "expected a token cache whose first variants are unchanged for augmented_share, got another; encode "
                "again with first_unchanged=true and variants of 2 or more"
            )

    def same_concept(self, index: int) -> np.ndarray:
        """Indices (m,) of the pictures of a picture's concept (see `entries.concept_of`), its own among them."""
        numbers, order, starts = self._by_concept
        return order[starts[numbers[index]] : starts[numbers[index] + 1]]

    @cached_property
    def _by_concept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A number for the concept of each picture, all pictures in the order of these, and where each begins there."""
        numbers = concept_indices(self.entries)
        return numbers, np.argsort(numbers, kind="stable"), np.append(0, np.bincount(numbers).cumsum())


def open_cache(folder: str | Path, split: str, image_tokenizer: str) -> TokenCache:
    """Open one split of a token cache; warns if the pictures have changed since they were encoded.

    Args:
        folder: the cache.
        split: `train` or `validation`.
        image_tokenizer: identity of the tokenizer that will decode the ids.

    Raises:
        UserError: there is no cache, it is damaged, or it was made with another image tokenizer.
    """
    folder = Path(folder)
    if not (folder / HEADER_FILE).is_file():
        raise UserError(f"{folder} is no token cache; make one with dalle_mini_impl.train.encode")
    try:
        header = read_header(folder)
        has_likely_ids = (folder / split / LIKELY_IDS_FILE).is_file()
        arrays = [IMAGE_IDS_FILE, *((LIKELY_IDS_FILE, PROBABILITIES_FILE) if has_likely_ids else ())]
        entries = PictureEntries.open(folder / split)
        image_ids, *distribution = (open_array(folder / split / name) for name in arrays)
        _check_shapes(header, entries, image_ids, distribution)
        image_embed = open_array(folder / split / IMAGE_EMBED_FILE) if header.scorer else None
        _check_embed_shape(image_ids, image_embed)

        files = [*(name for name in ENTRY_FILES if (folder / split / name).is_file()), *arrays]
        files += [IMAGE_EMBED_FILE] if header.scorer else []
        names = [f"{split}/{name}" for name in files]

        def verify() -> None:
            check_checksums(folder, names, header.checksums)
            _check_ranges(header.codebook_size, image_ids, distribution)
            if image_embed is not None and not all(np.isfinite(part).all() for part in _parts(image_embed)):
                raise ValueError(f"{IMAGE_EMBED_FILE} holds a number that is not finite")

        verify_once(folder, [HEADER_FILE, *names], verify)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"token cache {folder} is damaged or has no {split} split ({error}); encode again") from error
    if header.image_tokenizer != image_tokenizer:
        raise UserError(
            f"token cache {folder} was made with image tokenizer {header.image_tokenizer}, but the model "
            f"has {image_tokenizer}; encode again with this tokenizer"
        )
    if split == "train" and (changes := describe_newer_store(folder, header)):
        warnings.warn(f"token cache {folder} lacks the latest pictures: {changes}; encode again", stacklevel=2)
    likely_ids, probabilities = distribution or (None, None)
    return TokenCache(header, image_ids, entries, likely_ids, probabilities, image_embed)


def _check_shapes(
    header: CacheHeader, entries: PictureEntries, image_ids: np.ndarray, distribution: Sequence[np.ndarray]
) -> None:
    """Refuse ids that do not fit the header or the captions, with a ValueError."""
    expected = (len(entries), *image_ids.shape[1:2], *header.grid)
    if image_ids.dtype != np.uint16 or image_ids.shape != expected or 0 in expected:
        shape = f"({len(entries)}, variants, {header.grid[0]}, {header.grid[1]})"
        raise ValueError(f"{IMAGE_IDS_FILE} holds {image_ids.dtype} {image_ids.shape}, expected uint16 {shape}")
    for array, kind in zip(distribution, (np.uint16, np.float16), strict=False):
        if array.dtype != kind or array.shape[:-1] != image_ids.shape or array.shape != distribution[0].shape:
            raise ValueError(f"likely ids or their probabilities are {array.dtype} {array.shape}")


def _check_embed_shape(image_ids: np.ndarray, image_embed: np.ndarray | None) -> None:
    """Refuse embeddings that do not fit the ids, with a ValueError."""
    if image_embed is None:
        return
    if image_embed.dtype != np.float16 or image_embed.shape[:-1] != image_ids.shape[:2] or not image_embed.shape[-1]:
        shape = f"({image_ids.shape[0]}, {image_ids.shape[1]}, D)"
        raise ValueError(f"{IMAGE_EMBED_FILE} holds {image_embed.dtype} {image_embed.shape}, expected float16 {shape}")


def _check_ranges(codebook_size: int, image_ids: np.ndarray, distribution: Sequence[np.ndarray]) -> None:
    """Refuse ids above K and what is no probability, with a ValueError."""
    for ids in (image_ids, *distribution[:1]):
        if (largest := max(int(part.max()) for part in _parts(ids))) >= codebook_size:
            raise ValueError(f"it holds the image id {largest}, expected less than {codebook_size}")
    for shares in distribution[1:]:
        if not all(((part >= 0) & (part <= 1)).all() for part in _parts(shares)):
            raise ValueError(f"{PROBABILITIES_FILE} holds a number that is not between 0 and 1")


def _parts(array: np.ndarray) -> list[np.ndarray]:
    numbers = array.reshape(-1)  # a view, as the file is contiguous
    return [numbers[start : start + CHECKED_NUMBERS] for start in range(0, len(numbers), CHECKED_NUMBERS)]


def check_codebook_size(count: int) -> None:
    """Refuse a codebook whose ids a token cache cannot hold.

    Raises:
        UserError: `count` is not from 1 to `MAX_IDS`.
    """
    if not 1 <= count <= MAX_IDS:
        raise UserError(
            f"expected an image tokenizer with 1 to {MAX_IDS} ids, as many as a token cache can hold, got {count}; "
            f"set model.codebook_size"
        )


def check_cache_replaceable(folder: str | Path) -> None:
    """Check, before work begins, that a cache can be written to a folder and replaces nothing but another cache.

    Raises:
        UserError: the folder holds anything else.
    """
    check_replaceable(folder, CONTENTS)
    for split in ("train", "validation"):
        check_replaceable(Path(folder) / split, SPLIT_CONTENTS)
    if (Path(folder) / HEADER_FILE).exists() and not (Path(folder) / "train").exists():
        raise UserError(f"expected {folder} to be a token cache, got a {HEADER_FILE} alone; name another folder")


def describe_newer_store(folder: Path, header: CacheHeader) -> str:
    """What changed in the pictures that were encoded; empty if nothing did, or if they are gone."""
    store = Path(os.path.normpath(folder / header.store))
    if not header.store or not (version := store_version(store)):
        return ""
    if version != header.store_version:
        return f"picture store {store} was built anew"
    return source_changes(store)


def read_header(folder: Path) -> CacheHeader:
    """Read what a cache was made with.

    Raises:
        OSError, ValueError, LookupError or TypeError: there is no header, or it is damaged.
    """
    values = read_header_file(folder / HEADER_FILE)
    height, width = values["grid"][:2]
    header = CacheHeader(**{**values, "grid": (height, width)})
    numbers = (header.codebook_size, height, width)
    if not all(type(number) is int for number in numbers) or not isinstance(header.checksums, dict):
        raise TypeError(f"{HEADER_FILE} holds {values}")
    return header


def write_header(folder: Path, header: CacheHeader) -> None:
    """Write what a cache was made with."""
    write_header_file(folder / HEADER_FILE, asdict(header))


def describe_cut_captions(
    entries: PictureEntries, tokenizer: TextTokenizer, max_ids: int, max_captions: int = 5000
) -> str:
    """One line about captions that are longer than `max_ids`, or "" if none is.

    Args:
        entries: pictures with their captions.
        tokenizer: counts their ids.
        max_ids: number of ids that fit.
        max_captions: number of captions examined, evenly spaced over all.
    """
    ends = np.cumsum(entries.caption_counts())
    numbers = np.arange(0, ends[-1], max(1, int(ends[-1]) // max_captions))
    rows = np.searchsorted(ends, numbers, side="right")
    examined = [entries[row].captions[number - ends[row]].text for row, number in zip(rows, numbers, strict=True)]
    too_long = [text for text in examined if len(tokenizer.encode(text)) > max_ids]
    if not too_long:
        return ""
    cut_off = shorten(tokenizer.decode(tokenizer.encode(too_long[0])[max_ids:]))
    percent = 100 * len(too_long) / len(examined)
    return (
        f"{percent:.1f} % of captions have more than {max_ids} text ids and are cut: "
        f"{shorten(too_long[0])!r} loses {cut_off!r}"
    )


class CaptionSampler:
    """Samples one of a picture's captions, with a relative frequency for each language.

    Args:
        entries: pictures with their captions.
        languages: relative frequency of each language; languages not named have 1.
    """

    def __init__(self, entries: Sequence[PictureEntry], languages: dict[str, float]) -> None:
        self._entries, self._languages = entries, languages

    def sample(self, index: int, random: np.random.Generator) -> Caption:
        """One caption of picture `index`."""
        captions = self._entries[index].captions
        if len(captions) == 1:
            random.random()  # as for several
            return captions[0]
        cumulative = list(accumulate(self._weights(captions)))
        return captions[min(bisect_right(cumulative, random.random() * cumulative[-1]), len(captions) - 1)]

    def _weights(self, captions: tuple[Caption, ...]) -> list[float]:
        """The weight of each caption: that of its language, divided among the captions of the language."""
        counts = Counter(caption.language for caption in captions)
        return [self._languages.get(caption.language, 1.0) / counts[caption.language] for caption in captions]
