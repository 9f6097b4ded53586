"""Examines a data source before training: sizes, captions, scripts, languages, duplicates, and a sample of pictures.

Whatever the number of pictures, the memory is bounded.
"""

import hashlib
import heapq
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.duplicates import Duplicates
from dalle_mini_impl.data.fit import FitCounts, fit_picture
from dalle_mini_impl.data.languages import is_known_language
from dalle_mini_impl.data.pair import Caption, Pair
from dalle_mini_impl.data.value_counts import ValueCounts
from dalle_mini_impl.util.images import to_images
from dalle_mini_impl.util.tables import aligned_table

SAMPLE_COUNT = 48
"""Pictures on the contact sheet."""
SHOWN_SIDE = 128
"""Side in pixels up to which smaller pictures are enlarged on the contact sheet, by a whole number."""
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
    """Keys of pictures with equal pixels, the first `data.duplicates.MAX_KEYS`."""
    exact_repeats: int
    """Pictures whose pixels an earlier one has."""
    different: int
    """Pictures with pixels of their own, at most `data.duplicates.MAX_DIFFERENT`."""
    forgotten: int
    """Pictures beyond these, which may repeat each other."""
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


Sample = list[tuple[str, Image.Image]]
"""(first caption, picture as the model sees it) of each picture to show."""


class Inspection:
    """Measures pictures one after another.

    Args:
        sample: number of pictures to show. The choice depends on the keys alone, so it is the same each time.
        frame: height and width of the model's pictures.
        fit: how pictures are fitted into it, as in `DataConfig`.
    """

    def __init__(self, sample: int, frame: tuple[int, int], fit: str) -> None:
        self.sample, self.frame, self.fit = sample, frame, fit
        self.pictures = 0
        self.transparent = 0
        self.splits: Counter[str] = Counter()
        self.width, self.height, self.aspect = ValueCounts(), ValueCounts(), ValueCounts()
        self.caption_counts, self.caption_lengths = ValueCounts(), ValueCounts()
        self.letters: Counter[str] = Counter()
        """Letters by script."""
        self.languages: Counter[str] = Counter()
        """Captions by language."""
        self.duplicates = Duplicates()
        self.fitted = FitCounts()
        self.saved = 0
        """Of pictures that lost over a tenth, how many would lose nothing with `auto`."""
        self._shown: list[tuple[int, int, str, Image.Image]] = []
        """Heap of minus the hash of the key, minus the number of the picture, first caption and picture."""

    def add(self, pair: Pair) -> None:
        """Measure a picture."""
        image, split = pair.image, pair.split or "unassigned"
        self.pictures += 1
        self.transparent += image.mode == "RGBA"
        self.splits[split] += 1
        self.width.add(image.width)
        self.height.add(image.height)
        self.aspect.add(image.width / image.height)
        self.caption_counts.add(len(pair.captions))
        for caption in pair.captions:
            self.caption_lengths.add(len(caption.text))
            self.languages[caption.language or "unknown"] += 1
        self.letters.update(scripts_of(pair.captions))
        self.duplicates.add(pair.key, split, image)
        fitted = fit_picture(image, self.frame, self.fit)
        self.fitted.add(fitted)
        if self.fit == "crop" and fitted.lost > 0.1:
            self.saved += not fit_picture(image, self.frame, "auto").lost
        rank = -int.from_bytes(hashlib.blake2b(pair.key.encode(), digest_size=8).digest(), "big")
        if len(self._shown) < self.sample or rank > self._shown[0][0]:
            self._show((rank, self.pictures, pair.captions[0].text, seen_by_model(image, self.frame, self.fit)))

    def merge(self, other: "Inspection") -> None:
        """Add what was measured of pictures that come after these."""
        for rank, number, text, image in other._shown:
            self._show((rank, self.pictures + number, text, image))
        self.pictures += other.pictures
        self.transparent += other.transparent
        self.saved += other.saved
        for name in ("splits", "letters", "languages"):
            getattr(self, name).update(getattr(other, name))
        for name in ("width", "height", "aspect", "caption_counts", "caption_lengths", "fitted", "duplicates"):
            getattr(self, name).merge(getattr(other, name))

    def _show(self, entry: tuple[int, int, str, Image.Image]) -> None:
        push = heapq.heappush if len(self._shown) < self.sample else heapq.heappushpop
        push(self._shown, entry)

    def shown(self) -> Sample:
        """The pictures to show."""
        ordered = sorted(self._shown, reverse=True, key=lambda entry: entry[:2])
        return [(text, image) for _, _, text, image in ordered]

    def report(self) -> Report | None:
        """What was measured; None if there was no picture."""
        if not self.pictures:
            return None
        equal, near = self.duplicates.equal_groups(), list(self.duplicates.near_groups())
        total = self.letters.total()
        aspect = ValueCounts()
        for value, count in self.aspect.counts.items():
            aspect.add(round(value, 3), count)
        return Report(
            pictures=self.pictures,
            captions=self.caption_lengths.total,
            transparent=self.transparent,
            splits=dict(self.splits.most_common()),
            width=_range(self.width),
            height=_range(self.height),
            aspect=_range(aspect),
            captions_per_picture=_range(self.caption_counts),
            characters=_range(self.caption_lengths),
            scripts={script: round(count / total, 6) for script, count in self.letters.most_common()},
            languages=dict(self.languages.most_common()),
            unknown_languages=[code for code in self.languages if code != "unknown" and not is_known_language(code)],
            exact_duplicates=[group.keys for group in equal],
            exact_repeats=sum(group.count - 1 for group in equal),
            different=len(self.duplicates.firsts),
            forgotten=self.duplicates.forgotten,
            near_duplicates=[group.keys for group in near],
            leaking=sum(group.splits >= {"train", "validation"} for group in equal + near),
            compared=len(self.duplicates.compared),
            fit=self.fit,
            frame=self.frame,
            fitted=dict(self.fitted.changes.most_common()),
            lost_tenth=self.fitted.lost_tenth,
            lost_half=self.fitted.lost_half,
            suggestions=_suggestions(self),
        )


def inspect_pairs(
    pairs: Iterable[Pair], sample: int = SAMPLE_COUNT, frame: tuple[int, int] = (64, 64), fit: str = DataConfig.fit
) -> tuple[Report | None, Sample]:
    """Measure every picture and choose a sample of them.

    Args:
        pairs: what a reader yields; each picture is dropped once measured.
        sample: see `Inspection`.
        frame: see `Inspection`.
        fit: see `Inspection`.

    Returns:
        The report, or None if there was no picture, and the sample.
    """
    inspection = Inspection(sample, frame, fit)
    for pair in pairs:
        inspection.add(pair)
    return inspection.report(), inspection.shown()


def seen_by_model(image: Image.Image, frame: tuple[int, int], fit: str) -> Image.Image:
    """A picture as a model with a frame of some height and width sees it, enlarged by a whole number if it is small."""
    stored = fit_picture(image, DataConfig().frame_for(frame), fit).image
    (seen,) = to_images(pixels_on_white(np.array(stored)[None], frame))
    factor = max(1, SHOWN_SIDE // max(frame))
    return seen.resize((factor * frame[1], factor * frame[0]), Image.Resampling.NEAREST)


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


def _suggestions(inspection: Inspection) -> list[str]:
    """Settings under which less of the pictures would be lost or distorted."""
    suggestions = []
    fitted, count, frame = inspection.fitted, inspection.pictures, inspection.frame
    if inspection.saved:
        suggestions.append(f"data.fit=auto would cut nothing off from {inspection.saved} of these pictures")
    unfitting = fitted.lost_tenth - inspection.saved + fitted.changes["padded"] + fitted.changes["stretched"]
    median, own = inspection.aspect.median(), frame[1] / frame[0]
    alike = sum(
        number
        for aspect, number in inspection.aspect.counts.items()
        if 1 / COMMON_ASPECT < aspect / median < COMMON_ASPECT
    )
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


def _range(values: ValueCounts) -> Range:
    return Range(values.smallest, values.median(), values.largest)


def report_text(report: Report) -> str:
    """The report as lines of text."""
    near = report.near_duplicates
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
        ("same pixels", _duplicates_text(report.exact_repeats, report.exact_duplicates)),
        ("look alike", _duplicates_text(sum(map(len, near)) - len(near), near)),
    ]
    fitted = FitCounts(Counter(report.fitted), report.lost_tenth, report.lost_half)
    rows.insert(3, (f"fit {report.fit} to {report.frame[0]}×{report.frame[1]}", fitted.text()))
    lines = aligned_table(rows, gap=3).split("\n")
    lines[-1:-1] = _group_lines(report.exact_duplicates)
    lines += _group_lines(near)
    if report.leaking:
        lines.append(f"  groups that are both in train and in validation: {report.leaking}")
    if report.unknown_languages:
        names = ", ".join(report.unknown_languages)
        lines.append(f"  languages that are not known: {names}; expected codes such as de, pt-BR or yue")
    if report.forgotten:
        lines.append(f"  (same pixels were searched among the first {report.different} different pictures)")
    if report.compared < report.different:
        lines.append(f"  (only the first {report.compared} different pictures were compared)")
    lines += [f"suggestion: {suggestion}" for suggestion in report.suggestions]
    return "\n".join(lines)


def _range_text(value: Range) -> str:
    return f"{value.smallest:g} / {value.median:g} / {value.largest:g}"


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _duplicates_text(repeats: int, groups: list[list[str]]) -> str:
    return f"repeats: {repeats}, groups: {len(groups)}"


def _group_lines(groups: list[list[str]]) -> list[str]:
    return [
        f"  {' = '.join(group[:SHOWN_KEYS])}{' …' if len(group) > SHOWN_KEYS else ''}"
        for group in groups[:SHOWN_GROUPS]
    ]
