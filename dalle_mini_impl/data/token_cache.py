"""Image ids of pictures that an image tokenizer has encoded, memory-mapped, with their captions.

A cache is a folder with `cache.json` (identity of the image tokenizer, grid, K) and one folder per split with
`image_ids.npy` (n, variants, h, w) uint16 and `pairs.jsonl`. Another image tokenizer decodes the same ids to other
pictures, so a cache is opened only for the tokenizer that made it.

A cache encoded with `soft_ids` also has `likely_ids.npy` (n, variants, h, w, k) uint16, the k most probable ids of each
cell, and `shares.npy` of the same shape, float16, their probabilities.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import ENTRIES_FILE, PictureEntry, entry_from_json
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError

HEADER_FILE = "cache.json"
IMAGE_IDS_FILE = "image_ids.npy"
LIKELY_IDS_FILE = "likely_ids.npy"
PROBABILITIES_FILE = "shares.npy"
CONTENTS = (HEADER_FILE, "train", "validation")
"""What a cache's folder holds."""


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


@dataclass(frozen=True)
class TokenCache:
    """One split of a cache."""

    header: CacheHeader
    image_ids: np.ndarray
    """(n, variants, h, w) uint16, memory-mapped."""
    entries: list[PictureEntry]
    """Captions and details of each picture."""
    likely_ids: np.ndarray | None = None
    """(n, variants, h, w, k) uint16, memory-mapped: the most probable ids of each cell, if stored."""
    probabilities: np.ndarray | None = None
    """(n, variants, h, w, k) float16, memory-mapped: probabilities of `likely_ids`."""

    def __len__(self) -> int:
        return len(self.entries)

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


def open_cache(folder: str | Path, split: str, image_tokenizer: str) -> TokenCache:
    """Open one split of a token cache.

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
        with (folder / split / ENTRIES_FILE).open(encoding="utf-8") as lines:
            entries = [entry_from_json(json.loads(line)) for line in lines]
        image_ids = np.load(folder / split / IMAGE_IDS_FILE, mmap_mode="r")
        distribution = [
            np.load(folder / split / name, mmap_mode="r")
            for name in (LIKELY_IDS_FILE, PROBABILITIES_FILE)
            if (folder / split / LIKELY_IDS_FILE).is_file()
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"token cache {folder} is damaged or has no {split} split ({error}); encode again") from error
    if header.image_tokenizer != image_tokenizer:
        raise UserError(
            f"token cache {folder} was made with image tokenizer {header.image_tokenizer}, but the model "
            f"has {image_tokenizer}; encode again with this tokenizer"
        )
    return TokenCache(header, image_ids, entries, *distribution)


def read_header(folder: Path) -> CacheHeader:
    """Read what a cache was made with."""
    values: dict[str, Any] = json.loads((folder / HEADER_FILE).read_text())
    height, width = values["grid"][:2]
    return CacheHeader(values["image_tokenizer"], values["codebook_size"], (height, width), values.get("source", ""))


def write_header(folder: Path, header: CacheHeader) -> None:
    """Write what a cache was made with."""
    (folder / HEADER_FILE).write_text(json.dumps(asdict(header)))


def write_entries(folder: Path, entries: list[PictureEntry]) -> None:
    """Write the captions and details of a split."""
    with (folder / ENTRIES_FILE).open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)


def describe_cut_captions(
    entries: list[PictureEntry], tokenizer: TextTokenizer, max_ids: int, max_captions: int = 5000
) -> str:
    """One line about captions that are longer than `max_ids`, or "" if none is.

    Args:
        entries: pictures with their captions.
        tokenizer: counts their ids.
        max_ids: number of ids that fit.
        max_captions: number of captions examined, evenly spaced over all.
    """
    captions = [caption.text for entry in entries for caption in entry.captions]
    examined = captions[:: max(1, len(captions) // max_captions)]
    too_long = [text for text in examined if len(tokenizer.encode(text)) > max_ids]
    if not too_long:
        return ""
    cut_off = tokenizer.decode(tokenizer.encode(too_long[0])[max_ids:])
    percent = 100 * len(too_long) / len(examined)
    return (
        f"{percent:.1f} % of captions have more than {max_ids} text ids and are cut: {too_long[0]!r} loses {cut_off!r}"
    )


class CaptionSampler:
    """Samples one of a picture's captions, with a relative frequency for each language.

    Args:
        entries: pictures with their captions.
        languages: relative frequency of each language; languages not named have 1.
    """

    def __init__(self, entries: list[PictureEntry], languages: dict[str, float]) -> None:
        self._captions = [entry.captions for entry in entries]
        self._cumulative = [np.cumsum(self._weights(entry.captions, languages)) for entry in entries]

    def sample(self, index: int, random: np.random.Generator) -> Caption:
        """One caption of picture `index`."""
        cumulative = self._cumulative[index]
        chosen = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
        return self._captions[index][min(int(chosen), len(cumulative) - 1)]

    @staticmethod
    def _weights(captions: tuple[Caption, ...], languages: dict[str, float]) -> np.ndarray:
        """Weight (captions,) of each caption: that of its language, divided among the captions of the language."""
        counts: dict[str, int] = {}
        for caption in captions:
            counts[caption.language] = counts.get(caption.language, 0) + 1
        return np.array([languages.get(c.language, 1.0) / counts[c.language] for c in captions])
