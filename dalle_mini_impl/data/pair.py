"""The captioned picture, as every reader yields it, and the list of what a reader had to skip."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Caption:
    """One description of a picture."""

    text: str
    language: str = ""
    """Language code, or empty when unknown."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture with its captions."""

    key: str
    """Name of the picture, unique within its source."""
    image: Image.Image
    """RGB, or RGBA where the picture has transparent parts."""
    captions: tuple[Caption, ...]
    """At least one."""
    split: str = ""
    """`train` or `validation` where the source says so; empty leaves it to `split_of`."""
    may_flip: bool = False
    """Whether the mirrored picture still fits its captions."""
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else the source tells: vendor, concept, kind …"""


def split_of(key: str, validation: float) -> str:
    """Assign a picture to `train` or `validation` by its key alone, so that adding pictures moves none.

    Args:
        key: the picture's key.
        validation: share that goes to validation, 0 to 1.
    """
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return "validation" if number / 2**64 < validation else "train"


@dataclass
class SkipLog:
    """What was left out while reading, and why: skipped is never silent."""

    entries: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Note that `name` (a path or a tar member) was skipped."""
        self.entries.append((name, reason))

    def report(self, limit: int = 20) -> str:
        """Counts by reason, then the first `limit` names; empty when nothing was skipped."""
        if not self.entries:
            return ""
        counts = Counter(reason.split(":")[0] for _, reason in self.entries)
        lines = [f"skipped {len(self.entries)}: " + ", ".join(f"{n} {reason}" for reason, n in counts.most_common())]
        lines += [f"  {name}: {reason}" for name, reason in self.entries[:limit]]
        if len(self.entries) > limit:
            lines.append(f"  … and {len(self.entries) - limit} more")
        return "\n".join(lines)


def caption_in_language(captions: tuple[Caption, ...], language: str) -> Caption:
    """The first caption in a language, or the first of all."""
    return next((caption for caption in captions if caption.language == language), captions[0])
