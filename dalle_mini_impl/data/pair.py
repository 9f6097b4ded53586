"""The captioned picture, as every reader yields it, and the log of what a reader skipped."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dalle_mini_impl.util.text import printable


@dataclass(frozen=True)
class Caption:
    """One caption of a picture."""

    text: str
    language: str = ""
    """Language code such as `en`, or empty when unknown."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture with its captions."""

    key: str
    """Identifies the picture within its source."""
    image: Image.Image
    """RGB, or RGBA where the picture has transparent parts."""
    captions: tuple[Caption, ...]
    """At least one, except where the reader was told that captions are optional."""
    split: str = ""
    """`train`, `validation`, or `unused` (in neither) where the source assigns one; if empty, `split_of` does."""
    may_flip: bool = False
    """Whether the mirrored picture still fits its captions."""
    details: dict[str, Any] = field(default_factory=dict)
    """All other fields of the source: vendor, concept, kind …"""


def split_of(key: str, validation: float) -> str:
    """Assign a picture to `train` or `validation` by its key alone, so that adding pictures moves no other.

    Args:
        key: the picture's key.
        validation: fraction of the pictures that go to validation, 0 to 1.
    """
    return "validation" if hash_position(key) < validation else "train"


def hash_position(key: str) -> float:
    """A number in [0, 1) that follows from a picture's key; those of many keys are evenly distributed."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def fill_splits(pictures: Sequence[tuple[str, str, bool]], validation: float) -> list[str]:
    """Move a picture into a split that the hashes of a small set left empty: the one whose hash is nearest to it.

    Args:
        pictures: key and split of each, and whether the split is that of `split_of`, not of the source.
        validation: as in `split_of`.

    Returns:
        The split of each picture.
    """
    splits = [split for _, split, _ in pictures]
    movable = [index for index, (_, _, may_move) in enumerate(pictures) if may_move]
    if 0 < validation < 1 and len(pictures) > 1 and movable:
        for split, nearest in (("validation", min), ("train", max)):
            if split not in splits:
                splits[nearest(movable, key=lambda index: hash_position(pictures[index][0]))] = split
    return splits


@dataclass
class SkipLog:
    """What a reader skipped, and why, so that nothing is left out silently."""

    entries: list[tuple[str, str]] = field(default_factory=list)
    """(path or tar member, reason); the reason's part before the first colon is its category."""

    notes: list[tuple[str, str]] = field(default_factory=list)
    """In the same form, what was left out of samples that are used."""

    def add(self, name: str, reason: str) -> None:
        """Record that `name` (a path or a tar member) was skipped."""
        self.entries.append((printable(name), printable(reason)))

    def note(self, name: str, reason: str) -> None:
        """Record that a part of `name` was left out, though the rest is used."""
        self.notes.append((printable(name), printable(reason)))

    def report(self, limit: int = 20) -> str:
        """Counts by category, then the first `limit` entries; empty when nothing was skipped or left out."""
        return "\n".join([*_listing("skipped", self.entries, limit), *_listing("left out in part", self.notes, limit)])


def _listing(title: str, entries: list[tuple[str, str]], limit: int) -> list[str]:
    if not entries:
        return []
    counts = Counter(reason.split(":")[0] for _, reason in entries)
    lines = [f"{title} {len(entries)}: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common())]
    lines += [f"  {name}: {reason}" for name, reason in entries[:limit]]
    if len(entries) > limit:
        lines.append(f"  … and {len(entries) - limit} more")
    return lines


def caption_in_language(captions: tuple[Caption, ...], language: str) -> Caption:
    """The first caption in a language, or the first of all if there is none in it."""
    return next((caption for caption in captions if caption.language == language), captions[0])
