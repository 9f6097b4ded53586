"""Pictures already turned into image ids, memory-mapped, with their captions.

A cache is a folder with `cache.json` (whose tokenizer made it, grid, K) and for each split a folder with
`image_ids.npy` (n, variants, h, w) uint16 and `pairs.jsonl`. It belongs to one image tokenizer: ids of
another mean other pictures, so opening it with another is refused.

If it was encoded with `soft`, there are also `likely_ids.npy` (n, variants, h, w, k) uint16, the k likeliest ids of
each place, and `shares.npy` of the same shape, float16, their probabilities.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import PictureEntry, entry_from_json
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.util.errors import UserError

HEADER = "cache.json"
LIKELY_IDS_FILE, PROBABILITIES_FILE = "likely_ids.npy", "shares.npy"


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
    """Name of the folder or file that the pictures came from; older caches do not know it."""


@dataclass(frozen=True)
class TokenCache:
    """One split of a cache."""

    header: CacheHeader
    image_ids: np.ndarray
    """(n, variants, h, w) uint16, memory-mapped."""
    entries: list[PictureEntry]
    """Captions and details of each picture."""
    likely_ids: np.ndarray | None = None
    """(n, variants, h, w, k) uint16, memory-mapped: the likeliest ids of each place, if they were kept."""
    probabilities: np.ndarray | None = None
    """(n, variants, h, w, k) float16, memory-mapped: their probabilities."""

    def __len__(self) -> int:
        return len(self.entries)

    def distribution(self, index: int, variant: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest ids of one picture (h, w, k) int64, and their probabilities (h, w, k), which sum to 1.

        Raises:
            UserError: they were not kept.
        """
        if self.likely_ids is None or self.probabilities is None:
            raise UserError(
                "the token cache has but the chosen ids, expected the likeliest ones and their "
                "probabilities; encode again with soft=16, or set image_targets=argmax"
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
    if not (folder / HEADER).is_file():
        raise UserError(f"{folder} is no token cache; make one with dalle_mini_impl.train.encode")
    try:
        header = read_header(folder)
        with (folder / split / "pairs.jsonl").open(encoding="utf-8") as lines:
            entries = [entry_from_json(json.loads(line)) for line in lines]
        image_ids = np.load(folder / split / "image_ids.npy", mmap_mode="r")
        soft = [
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
    return TokenCache(header, image_ids, entries, *soft)


def read_header(folder: Path) -> CacheHeader:
    """What the cache in `folder` was made with."""
    values: dict[str, Any] = json.loads((folder / HEADER).read_text())
    grid = (values["grid"][0], values["grid"][1])
    return CacheHeader(values["image_tokenizer"], values["codebook_size"], grid, values.get("source", ""))


def write_header(folder: Path, header: CacheHeader) -> None:
    """Write what the cache in `folder` was made with."""
    (folder / HEADER).write_text(json.dumps(asdict(header)))


def write_entries(folder: Path, entries: list[PictureEntry]) -> None:
    """Write the captions and details of a split."""
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)


def describe_cut_captions(entries: list[PictureEntry], tokenizer: TextTokenizer, room: int, most: int = 5000) -> str:
    """One line on captions that do not fit, or "" when all do.

    Args:
        entries: pictures with their captions.
        tokenizer: counts their ids.
        room: ids that fit.
        most: captions looked at, evenly spread.
    """
    captions = [caption.text for entry in entries for caption in entry.captions]
    looked_at = captions[:: max(1, len(captions) // most)]
    cut = [text for text in looked_at if len(tokenizer.encode(text)) > room]
    if not cut:
        return ""
    lost = tokenizer.decode(tokenizer.encode(cut[0])[room:])
    share = 100 * len(cut) / len(looked_at)
    return f"{share:.1f} % of captions have more than {room} text ids and are cut: {cut[0]!r} loses {lost!r}"


class CaptionSampler:
    """Draws one of a picture's captions, each language as often as wanted.

    Args:
        entries: pictures with their captions.
        languages: relative frequency of each language; languages not named get 1.
    """

    def __init__(self, entries: list[PictureEntry], languages: dict[str, float]) -> None:
        self._captions = [entry.captions for entry in entries]
        self._cumulative = [np.cumsum(self._weights(entry.captions, languages)) for entry in entries]

    def sample(self, index: int, random: np.random.Generator) -> Caption:
        """One caption of picture `index`."""
        cumulative = self._cumulative[index]
        place = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
        return self._captions[index][min(int(place), len(cumulative) - 1)]

    @staticmethod
    def _weights(captions: tuple[Caption, ...], languages: dict[str, float]) -> np.ndarray:
        counts: dict[str, int] = {}
        for caption in captions:
            counts[caption.language] = counts.get(caption.language, 0) + 1
        return np.array([languages.get(c.language, 1.0) / counts[c.language] for c in captions])
