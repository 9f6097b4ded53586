"""Examines a data source before training: sizes, captions, scripts, languages, duplicates, and a sample of pictures."""

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

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.fit import FitCounts, fit_picture
from dalle_mini_impl.data.languages import is_known_language
from dalle_mini_impl.data.pair import Caption, Pair
from dalle_mini_impl.util.images import on_background, to_images
from dalle_mini_impl.util.tables import aligned_table

SAMPLE_COUNT = 48
"""Pictures on the contact sheet."""
SHOWN_SIDE = 128
"""Side in pixels up to which smaller pictures are enlarged on the contact sheet, by a whole number."""
MAX_COMPARED = 30_000
"""Near duplicates are searched among this many pictures, because the work grows with the square of their number."""
MAX_STEP_DIFFERENCES = 3
"""In how many of its 64 brightness steps a near duplicate may differ."""
MAX_COLOUR_DIFFERENCE = 24
"""Largest difference (0 to 255) of the mean colour of any cell of a 16 × 16 grid in a near duplicate. Brightness steps
alone would take a blue heart for a red one, and a smile for a frown."""
SHOWN_GROUPS = 5
"""Groups of duplicates listed in the report."""
SHOWN_KEYS = 4
"""Pictures listed of each group of duplicates."""
SIDE_STEP = 16
"""Suggested sides are multiples of so many pixels: of 2 × 2 tokens at factor 8, as presets join them to patches."""
LOSS_TO_MENTION = 0.05
"""Share of the pictures that lose over a tenth of what is drawn, above which another setting is suggested."""
COMMON_ASPECT = 1.15
"""Pictures have a common aspect ratio if most are within this factor of the median."""

SCRIPTS = {
    "CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana", "MICRO": "Greek",
    "MASCULINE": "Latin", "FEMININE": "Latin", "MODIFIER": "Other", "MATHEMATICAL": "Other",
}  # fmt: skip
"""First word of a letter's Unicode name -> script, where that word is not itself the name of the script."""


@dataclass(frozen=True)
class Range:
    """Range of a measured value."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measurements of a source; lengths of pictures are in pixels."""

    pictures: int
    captions: int
    transparent: int
    """Pictures with an alpha channel."""
    splits: dict[str, int]
    """Number of pictures by the split that the source assigns; `unassigned` where it assigns none."""
    width: Range
    height: Range
    aspect: Range
    """Width divided by height."""
    captions_per_picture: Range
    characters: Range
    """Length of a caption."""
    scripts: dict[str, float]
    """Unicode script -> its share of all letters in captions, most frequent first."""
    languages: dict[str, int]
    """Number of captions by the language code that the source assigns; `unknown` where it assigns none."""
    unknown_languages: list[str]
    """Those of `languages` that are no codes of languages."""
    exact_duplicates: list[list[str]]
    """Keys of pictures with equal pixels."""
    near_duplicates: list[list[str]]
    """Keys of pictures that differ little; of each group of exact duplicates only the first is compared."""
    leaking: int
    """Number of groups of duplicates that have pictures in `train` and in `validation`."""
    compared: int
    """Number of pictures that the search for near duplicates compared."""
    fit: str
    """How pictures are fitted into the model's frame, as in `DataConfig`."""
    frame: tuple[int, int]
    """Height and width of the frame."""
    fitted: dict[str, int]
    """Number of pictures by what fitting did to them; see `data.fit.Change`."""
    lost_tenth: int
    """Pictures that lost over a tenth of what is drawn."""
    lost_half: int
    """Those of them that lost over half of it."""
    suggestions: list[str]
    """Settings under which less would be lost, in words."""


@dataclass
class _Measurements:
    """Measurements collected while reading; lists have one entry per picture unless noted."""

    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(width, height) in pixels."""
    modes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    caption_counts: list[int] = field(default_factory=list)
    caption_lengths: list[int] = field(default_factory=list)
    """In characters, one entry per caption."""
    letters: Counter[str] = field(default_factory=Counter)
    """Letters by script."""
    languages: Counter[str] = field(default_factory=Counter)
    """Captions by language."""
    digests: list[bytes] = field(default_factory=list)
    """Hash of size and pixels."""
    steps: list[np.ndarray] = field(default_factory=list)
    """(8, 8) bool, see `near_duplicate_groups`."""
    thumbnails: list[np.ndarray] = field(default_factory=list)
    """(16, 16, 3) uint8, see `near_duplicate_groups`."""
    fitted: FitCounts = field(default_factory=FitCounts)
    saved: int = 0
    """Of pictures that lost over a tenth, how many would lose nothing with `auto`."""


Sample = list[tuple[str, Image.Image]]
"""(first caption, picture as the model sees it) of each picture to show."""


def inspect_pairs(
    pairs: Iterable[Pair], sample: int = SAMPLE_COUNT, frame: tuple[int, int] = (64, 64), fit: str = DataConfig.fit
) -> tuple[Report | None, Sample]:
    """Measure every picture and choose a sample of them.

    Args:
        pairs: what a reader yields; each picture is dropped once measured.
        sample: number of pictures to show. The choice depends on the keys alone, so it is the same each time.
        frame: height and width of the model's pictures.
        fit: how pictures are fitted into it, as in `DataConfig`.

    Returns:
        The report, or None if there was no picture, and the sample.
    """
    measured = _Measurements()
    heap: list[tuple[int, int, str, Image.Image]] = []
    for number, pair in enumerate(pairs):
        _measure(measured, pair)
        _count_fit(measured, pair.image, frame, fit)
        rank = -int.from_bytes(hashlib.blake2b(pair.key.encode(), digest_size=8).digest(), "big")
        if len(heap) < sample or rank > heap[0][0]:
            push = heapq.heappush if len(heap) < sample else heapq.heappushpop
            push(heap, (rank, number, pair.captions[0].text, seen_by_model(pair.image, frame, fit)))
    chosen = [(text, image) for _, _, text, image in sorted(heap, reverse=True, key=lambda entry: entry[:2])]
    return (_report(measured, frame, fit) if measured.keys else None), chosen


def seen_by_model(image: Image.Image, frame: tuple[int, int], fit: str) -> Image.Image:
    """A picture as a model with a frame of some height and width sees it, enlarged by a whole number if it is small."""
    stored = fit_picture(image, DataConfig().frame_for(frame), fit).image
    (seen,) = to_images(pixels_on_white(np.array(stored)[None], frame))
    factor = max(1, SHOWN_SIDE // max(frame))
    return seen.resize((factor * frame[1], factor * frame[0]), Image.Resampling.NEAREST)


def _count_fit(measured: _Measurements, image: Image.Image, frame: tuple[int, int], fit: str) -> None:
    fitted = fit_picture(image, frame, fit)
    measured.fitted.add(fitted)
    if fit == "crop" and fitted.lost > 0.1:
        measured.saved += not fit_picture(image, frame, "auto").lost


def _measure(measured: _Measurements, pair: Pair) -> None:
    measured.keys.append(pair.key)
    measured.sizes.append(pair.image.size)
    measured.modes.append(pair.image.mode)
    measured.splits.append(pair.split or "unassigned")
    measured.caption_counts.append(len(pair.captions))
    for caption in pair.captions:
        measured.caption_lengths.append(len(caption.text))
        measured.languages[caption.language or "unknown"] += 1
    measured.letters.update(scripts_of(pair.captions))
    size = f"{pair.image.size}".encode()
    measured.digests.append(hashlib.blake2b(size + pair.image.convert("RGBA").tobytes(), digest_size=16).digest())
    rgb = on_background(pair.image)
    brightness = np.asarray(rgb.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    measured.steps.append(brightness[:, 1:] > brightness[:, :-1])
    measured.thumbnails.append(np.asarray(rgb.resize((16, 16), Image.Resampling.BOX)))


def scripts_of(captions: Sequence[Caption]) -> Counter[str]:
    """Count the letters of captions by Unicode script (Latin, Cyrillic, Han …)."""
    letters: Counter[str] = Counter()
    for caption in captions:
        letters.update(_script(character) for character in caption.text if character.isalpha())
    return letters


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    # Python has no table of scripts, but the Unicode name of a letter starts with its script.
    words = unicodedata.name(letter, "OTHER").split()
    word = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    return SCRIPTS.get(word, word.title())


def _report(measured: _Measurements, frame: tuple[int, int], fit: str) -> Report:
    rows_of_digest = defaultdict(list)
    for row, digest in enumerate(measured.digests):
        rows_of_digest[digest].append(row)
    exact = [group for group in rows_of_digest.values() if len(group) > 1]
    compared = [group[0] for group in rows_of_digest.values()][:MAX_COMPARED]
    near = near_duplicate_groups(np.stack(measured.steps)[compared], np.stack(measured.thumbnails)[compared])
    near = [[compared[index] for index in group] for group in near]
    leaking = [{measured.splits[row] for row in group} >= {"train", "validation"} for group in exact + near]
    total = sum(measured.letters.values())
    return Report(
        pictures=len(measured.keys),
        captions=len(measured.caption_lengths),
        transparent=measured.modes.count("RGBA"),
        splits=dict(Counter(measured.splits).most_common()),
        width=_range([width for width, _ in measured.sizes]),
        height=_range([height for _, height in measured.sizes]),
        aspect=_range([round(width / height, 3) for width, height in measured.sizes]),
        captions_per_picture=_range(measured.caption_counts),
        characters=_range(measured.caption_lengths),
        scripts={script: round(count / total, 6) for script, count in measured.letters.most_common()},
        languages=dict(measured.languages.most_common()),
        unknown_languages=[code for code in measured.languages if code != "unknown" and not is_known_language(code)],
        exact_duplicates=[[measured.keys[row] for row in group] for group in exact],
        near_duplicates=[[measured.keys[row] for row in group] for group in near],
        leaking=sum(leaking),
        compared=len(compared),
        fit=fit,
        frame=frame,
        fitted=dict(measured.fitted.changes.most_common()),
        lost_tenth=measured.fitted.lost_tenth,
        lost_half=measured.fitted.lost_half,
        suggestions=_suggestions(measured, frame),
    )


def _suggestions(measured: _Measurements, frame: tuple[int, int]) -> list[str]:
    """Settings under which less of the pictures would be lost or distorted."""
    suggestions = []
    if measured.saved:
        suggestions.append(f"data.fit=auto would cut nothing off from {measured.saved} of these pictures")
    changes, count = measured.fitted.changes, len(measured.keys)
    unfitting = measured.fitted.lost_tenth - measured.saved + changes["padded"] + changes["stretched"]
    aspects = [width / height for width, height in measured.sizes]
    median, own = statistics.median(aspects), frame[1] / frame[0]
    alike = sum(1 / COMMON_ASPECT < aspect / median < COMMON_ASPECT for aspect in aspects)
    if unfitting > LOSS_TO_MENTION * count and alike > count / 2:
        # About the same number of pixels in the pictures' proportions.
        elongation = max(median, 1 / median)
        shorter = max(1, round((frame[0] * frame[1] / elongation) ** 0.5 / SIDE_STEP))
        longer = round(shorter * elongation)
        height, width = (SIDE_STEP * side for side in sorted((shorter, longer), reverse=median < 1))
        if abs(width / height / median - 1) < abs(own / median - 1) / 2:
            suggestions.append(
                f"{alike} of {count} pictures have a width : height near {median:.3g}; model.image_size=0 "
                f"model.height={height} model.width={width} would fit them better"
            )
    return suggestions


def _range(values: Sequence[float]) -> Range:
    return Range(min(values), statistics.median(values), max(values))


def near_duplicate_groups(steps: np.ndarray, thumbnails: np.ndarray, rows: int = 1024) -> list[list[int]]:
    """Group pictures that differ in few brightness steps and little in colour.

    Brightness steps are the difference hash (dHash): whether brightness rises from one cell to the next.

    Args:
        steps: (n, 8, 8) bool, steps within the rows of the picture at 8 × 9.
        thumbnails: (n, 16, 16, 3) uint8, the picture at 16 × 16.
        rows: number of pictures compared with all others at once, which bounds the memory.

    Returns:
        Groups of two or more indices. Pictures are in one group if a chain of near duplicates connects them.
    """
    signs = steps.reshape(len(steps), -1).astype(np.float32) * 2 - 1
    parent = list(range(len(signs)))  # union-find

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for start in range(0, len(signs), rows):
        # In the product, equal signs add 1 and different ones subtract 1.
        alike = signs[start : start + rows] @ signs[start:].T >= signs.shape[1] - 2 * MAX_STEP_DIFFERENCES
        for left, right in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            first, second = start + int(left), start + int(right)
            if np.abs(thumbnails[first].astype(np.int16) - thumbnails[second]).max() <= MAX_COLOUR_DIFFERENCE:
                parent[root(second)] = root(first)
    groups = defaultdict(list)
    for index in range(len(parent)):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def report_text(report: Report) -> str:
    """The report as lines of text."""
    rows = [
        ("pictures", f"{report.pictures} ({report.transparent} with transparency)"),
        ("captions", str(report.captions)),
        ("split", _counts_text(report.splits)),
        ("", "smallest / median / largest"),
        ("width", f"{_range_text(report.width)} px"),
        ("height", f"{_range_text(report.height)} px"),
        ("width : height", _range_text(report.aspect)),
        ("captions per picture", _range_text(report.captions_per_picture)),
        ("caption length", f"{_range_text(report.characters)} characters"),
        ("scripts of letters", ", ".join(f"{name} {share:.1%}" for name, share in report.scripts.items())),
        ("caption languages", _counts_text(report.languages)),
        ("same pixels", _duplicates_text(report.exact_duplicates)),
        ("look alike", _duplicates_text(report.near_duplicates)),
    ]
    fitted = FitCounts(Counter(report.fitted), report.lost_tenth, report.lost_half)
    rows.insert(3, (f"fit {report.fit} to {report.frame[0]}×{report.frame[1]}", fitted.text()))
    lines = aligned_table(rows, gap=3).split("\n")
    lines[-1:-1] = _group_lines(report.exact_duplicates)
    lines += _group_lines(report.near_duplicates)
    if report.leaking:
        lines.append(f"  groups that are both in train and in validation: {report.leaking}")
    if report.unknown_languages:
        names = ", ".join(report.unknown_languages)
        lines.append(f"  languages that are not known: {names}; expected codes such as de, pt-BR or yue")
    if report.compared == MAX_COMPARED:
        lines.append(f"  (only the first {MAX_COMPARED} different pictures were compared)")
    lines += [f"suggestion: {suggestion}" for suggestion in report.suggestions]
    return "\n".join(lines)


def _range_text(value: Range) -> str:
    return f"{value.smallest:g} / {value.median:g} / {value.largest:g}"


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _duplicates_text(groups: list[list[str]]) -> str:
    return f"repeats: {sum(len(group) - 1 for group in groups)}, groups: {len(groups)}"


def _group_lines(groups: list[list[str]]) -> list[str]:
    return [
        f"  {' = '.join(group[:SHOWN_KEYS])}{' …' if len(group) > SHOWN_KEYS else ''}"
        for group in groups[:SHOWN_GROUPS]
    ]
