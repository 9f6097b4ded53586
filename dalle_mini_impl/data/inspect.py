"""Looks at a source before anything is trained on it: sizes, captions, scripts, duplicates, a sample."""

import hashlib
import heapq
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image

from dalle_mini_impl.data.pair import Caption, Pair
from dalle_mini_impl.util.images import on_background

SAMPLE = 48
SAMPLE_SIZE = 112
NEAR_LIMIT = 30_000
"""Near duplicates are looked for among this many pictures: the work grows with the square of their number."""
NEAR_BITS = 3
"""Of 64 brightness steps, how many may differ in a near duplicate."""
NEAR_COLOUR = 24
"""Largest difference of any 16th × 16th part's colour, 0 to 255, in a near duplicate: a blue heart is no copy
of a red one, nor a smile of a frown."""

SCRIPTS = {
    "CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana", "MICRO": "Greek",
    "MASCULINE": "Latin", "FEMININE": "Latin", "MODIFIER": "Other", "MATHEMATICAL": "Other",
}  # fmt: skip
"""First words of letters' names that are not the name of their script."""


@dataclass(frozen=True)
class Range:
    """Range of a measured value."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a source holds."""

    pictures: int
    captions: int
    transparent: int
    """Pictures with an alpha channel."""
    splits: dict[str, int]
    """Pictures by the split the source gives them; `unassigned` where it gives none."""
    width: Range
    """In pixels."""
    height: Range
    """In pixels."""
    aspect: Range
    """Width divided by height."""
    captions_per_picture: Range
    characters: Range
    """Length of a caption."""
    scripts: dict[str, float]
    """Unicode script -> share of all letters in captions, most frequent first."""
    languages: dict[str, int]
    """Captions by the language code the source gives them."""
    exact_duplicates: list[list[str]]
    """Keys of pictures with equal pixels."""
    near_duplicates: list[list[str]]
    """Keys of pictures that look alike; of each exact group only the first is compared."""
    leaking: int
    """Groups of duplicates that the source puts partly into `train` and partly into `validation`."""
    compared: int
    """How many pictures the search for near duplicates covered."""


@dataclass
class _Seen:
    """Measurements while reading, one entry per picture."""

    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    letters: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    digests: list[bytes] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    thumbs: list[np.ndarray] = field(default_factory=list)


Sample = list[tuple[str, Image.Image]]
"""(first caption, small picture) of pictures to show."""


def inspect_pairs(pairs: Iterable[Pair], sample: int = SAMPLE) -> tuple[Report | None, Sample]:
    """Measure every picture and draw a sample.

    Args:
        pairs: what a reader yields; each picture is dropped once measured.
        sample: number of pictures to show. They depend on the keys alone, so looking twice shows the same.

    Returns:
        The report, or None where there was no picture, and the sample.
    """
    seen = _Seen()
    heap: list[tuple[int, int, str, Image.Image]] = []
    for number, pair in enumerate(pairs):
        _measure(seen, pair)
        rank = -int.from_bytes(hashlib.blake2b(pair.key.encode(), digest_size=8).digest(), "big")
        if len(heap) < sample or rank > heap[0][0]:
            small = pair.image.copy()
            small.thumbnail((SAMPLE_SIZE, SAMPLE_SIZE), Image.Resampling.LANCZOS)
            push = heapq.heappush if len(heap) < sample else heapq.heappushpop
            push(heap, (rank, number, pair.captions[0].text, small))
    shown = [(text, image) for _, _, text, image in sorted(heap, reverse=True, key=lambda entry: entry[:2])]
    return (_report(seen) if seen.keys else None), shown


def _measure(seen: _Seen, pair: Pair) -> None:
    seen.keys.append(pair.key)
    seen.sizes.append(pair.image.size)
    seen.modes.append(pair.image.mode)
    seen.splits.append(pair.split or "unassigned")
    seen.captions.append(len(pair.captions))
    for caption in pair.captions:
        seen.characters.append(len(caption.text))
        seen.languages[caption.language or "unknown"] += 1
    seen.letters.update(scripts_of(pair.captions))
    shape = f"{pair.image.size}".encode()
    seen.digests.append(hashlib.blake2b(shape + pair.image.convert("RGBA").tobytes(), digest_size=16).digest())
    plain = on_background(pair.image)
    grey = np.asarray(plain.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    seen.steps.append(grey[:, 1:] > grey[:, :-1])
    seen.thumbs.append(np.asarray(plain.resize((16, 16), Image.Resampling.BOX)))


def scripts_of(captions: Sequence[Caption]) -> Counter[str]:
    """Count the letters of captions by Unicode script (Latin, Cyrillic, Han …)."""
    letters: Counter[str] = Counter()
    for caption in captions:
        letters.update(_script(character) for character in caption.text if character.isalpha())
    return letters


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    # Python has no table of scripts, but a letter's name starts with its script.
    words = unicodedata.name(letter, "OTHER").split()
    word = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    return SCRIPTS.get(word, word.title())


def _report(seen: _Seen) -> Report:
    by_digest = defaultdict(list)
    for number, digest in enumerate(seen.digests):
        by_digest[digest].append(number)
    exact = [group for group in by_digest.values() if len(group) > 1]
    compared = [group[0] for group in by_digest.values()][:NEAR_LIMIT]
    near = near_duplicate_groups(np.stack(seen.steps)[compared], np.stack(seen.thumbs)[compared])
    near = [[compared[number] for number in group] for group in near]
    leaking = [{seen.splits[n] for n in group} >= {"train", "validation"} for group in exact + near]
    total = sum(seen.letters.values())
    return Report(
        pictures=len(seen.keys),
        captions=len(seen.characters),
        transparent=seen.modes.count("RGBA"),
        splits=dict(Counter(seen.splits).most_common()),
        width=_range([width for width, _ in seen.sizes]),
        height=_range([height for _, height in seen.sizes]),
        aspect=_range([round(width / height, 3) for width, height in seen.sizes]),
        captions_per_picture=_range(seen.captions),
        characters=_range(seen.characters),
        scripts={script: round(count / total, 6) for script, count in seen.letters.most_common()},
        languages=dict(seen.languages.most_common()),
        exact_duplicates=[[seen.keys[number] for number in group] for group in exact],
        near_duplicates=[[seen.keys[number] for number in group] for group in near],
        leaking=sum(leaking),
        compared=len(compared),
    )


def _range(values: Sequence[float]) -> Range:
    return Range(min(values), statistics.median(values), max(values))


def near_duplicate_groups(steps: np.ndarray, thumbs: np.ndarray, rows: int = 1024) -> list[list[int]]:
    """Group pictures that differ in few brightness steps and little in colour.

    Args:
        steps: (n, 8, 8) bool, whether brightness rises from one cell of an 8 × 9 picture to the next.
        thumbs: (n, 16, 16, 3) uint8, the picture at 16 × 16.
        rows: how many pictures are compared with all others at once.

    Returns:
        Groups of two or more row numbers; likeness is passed on from one member to the next.
    """
    signs = steps.reshape(len(steps), -1).astype(np.float32) * 2 - 1
    leader = list(range(len(signs)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    for start in range(0, len(signs), rows):
        # Signs that agree add 1 to the product and those that differ take 1 away.
        alike = signs[start : start + rows] @ signs[start:].T >= signs.shape[1] - 2 * NEAR_BITS
        for left, right in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            first, second = start + int(left), start + int(right)
            if np.abs(thumbs[first].astype(np.int16) - thumbs[second]).max() <= NEAR_COLOUR:
                leader[find(second)] = find(first)
    groups = defaultdict(list)
    for number in range(len(leader)):
        groups[find(number)].append(number)
    return [group for group in groups.values() if len(group) > 1]


def report_text(report: Report) -> str:
    """The report as lines of text."""

    def spread(value: Range) -> str:
        return f"{value.smallest:g} / {value.median:g} / {value.largest:g}"

    lines = [
        f"pictures               {report.pictures} ({report.transparent} with transparency)",
        f"captions               {report.captions}",
        f"split                  {_counts(report.splits)}",
        "                       smallest / median / largest",
        f"width                  {spread(report.width)} px",
        f"height                 {spread(report.height)} px",
        f"width : height         {spread(report.aspect)}",
        f"captions per picture   {spread(report.captions_per_picture)}",
        f"caption length         {spread(report.characters)} characters",
        "scripts of letters     " + ", ".join(f"{name} {share:.1%}" for name, share in report.scripts.items()),
        f"caption languages      {_counts(report.languages)}",
    ]
    for title, groups in (("same pixels", report.exact_duplicates), ("look alike", report.near_duplicates)):
        copies = sum(len(group) - 1 for group in groups)
        lines.append(f"{title:<22} repeats: {copies}, groups: {len(groups)}")
        lines += [f"  {' = '.join(group[:4])}{' …' if len(group) > 4 else ''}" for group in groups[:5]]
    if report.leaking:
        lines.append(f"  groups that are both in train and in validation: {report.leaking}")
    if report.compared == NEAR_LIMIT:
        lines.append(f"  (only the first {NEAR_LIMIT} different pictures were compared)")
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
