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
    content: bytes = field(default=b"", repr=False)
    """Of the picture's file."""


def split_of(key: str, validation: float) -> str:
    """Assign a picture to `train` or `validation` by its key alone, so that adding pictures moves no other.

    Args:
        key: the picture's key.
        validation: fraction of the pictures that go to validation, 0 to 1.
    """
    return "validation" if hash_position(key) < validation else "train"


def hash_position(key: str) -> float:
    """A number in [0, 1) that follows from a picture's key; those of many keys are evenly distributed."""
    return key_hash(key) / 2**64


def key_hash(key: str) -> int:
    """A number below 2⁶⁴ that follows from a picture's key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


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


MAX_ENTRIES = 100_000
"""Skipped samples that a log lists; more are only counted."""


@dataclass
class _SkipList:
    """What was skipped, or left out."""

    entries: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the first `MAX_ENTRIES`."""
    counts: Counter[str] = field(default_factory=Counter)
    """Category of the reason -> number of samples."""
    unlisted: int = 0
    """Entries beyond `MAX_ENTRIES`."""

    def add(self, name: str, reason: str, count: int) -> None:
        reason = printable(reason)
        self.counts[reason.split(":")[0]] += count
        if len(self.entries) < MAX_ENTRIES:
            self.entries.append((printable(name), reason))
        else:
            self.unlisted += 1

    def merge(self, other: "_SkipList") -> None:
        kept = other.entries[: MAX_ENTRIES - len(self.entries)]
        self.entries += kept
        self.counts.update(other.counts)
        self.unlisted += other.unlisted + len(other.entries) - len(kept)

    def as_json(self) -> dict[str, Any]:
        return {"entries": self.entries, "counts": dict(self.counts), "unlisted": self.unlisted}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "_SkipList":
        return cls(
            [(name, reason) for name, reason in values["entries"]], Counter(values["counts"]), values["unlisted"]
        )

    def lines(self, title: str, limit: int) -> list[str]:
        if not self.entries:
            return []
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        lines = [
            f"{title} {self.counts.total()}: {counts}",
            *(f"  {name}: {why}" for name, why in self.entries[:limit]),
        ]
        more = len(self.entries) + self.unlisted - limit
        return [*lines, f"  … and {more} more"] if more > 0 else lines


@dataclass
class SkipLog:
    """What a reader skipped, and why, so that nothing is left out silently."""

    _skipped: _SkipList = field(default_factory=_SkipList)
    _noted: _SkipList = field(default_factory=_SkipList)
    may_be_read_later: bool = False
    """Whether something was skipped that could not be read for the moment, such as a file at an address."""

    @property
    def entries(self) -> list[tuple[str, str]]:
        """(path or tar member, reason) of the first `MAX_ENTRIES` that were skipped; the reason's part before the first
        colon is its category.
        """
        return self._skipped.entries

    @property
    def notes(self) -> list[tuple[str, str]]:
        """In the same form, what was left out of samples that are used."""
        return self._noted.entries

    def add(self, name: str, reason: str, count: int = 1, *, may_be_read_later: bool = False) -> None:
        """Record that `name` (a path or a tar member), or `count` samples of it, was skipped."""
        self._skipped.add(name, reason, count)
        self.may_be_read_later |= may_be_read_later

    def note(self, name: str, reason: str) -> None:
        """Record that a part of `name` was left out, though the rest is used."""
        self._noted.add(name, reason, 1)

    def merge(self, other: "SkipLog") -> None:
        """Add what another log recorded."""
        self._skipped.merge(other._skipped)
        self._noted.merge(other._noted)
        self.may_be_read_later |= other.may_be_read_later

    def take(self) -> "SkipLog":
        """Hand over what was recorded so far, and begin anew."""
        taken = SkipLog(self._skipped, self._noted, self.may_be_read_later)
        self._skipped, self._noted, self.may_be_read_later = _SkipList(), _SkipList(), False
        return taken

    def as_json(self) -> dict[str, Any]:
        """What was recorded, as JSON values."""
        return {"skipped": self._skipped.as_json(), "noted": self._noted.as_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SkipLog":
        """The log that `as_json` gave.

        Raises:
            LookupError, TypeError or ValueError: the values have another form.
        """
        return cls(_SkipList.from_json(values["skipped"]), _SkipList.from_json(values["noted"]))

    def report(self, limit: int = 20) -> str:
        """Counts by category, then the first `limit` entries; empty when nothing was skipped or left out."""
        return "\n".join([*self._skipped.lines("skipped", limit), *self._noted.lines("left out in part", limit)])


def caption_in_language(captions: tuple[Caption, ...], language: str) -> Caption:
    """The first caption in a language, or the first of all if there is none in it."""
    return next((caption for caption in captions if caption.language == language), captions[0])
