"""How often each value was measured: smallest, median and largest of any number of values in bounded memory."""

from collections import Counter
from dataclasses import dataclass, field

MAX_DISTINCT = 100_000
"""Different values that are told apart exactly; when there are more, all are rounded."""
ROUNDED_DIGITS = 4
"""Significant digits that rounded values keep: they are at most 0.05 % off."""


@dataclass
class ValueCounts:
    """Counts of values."""

    smallest: float = float("inf")
    largest: float = float("-inf")
    rounded: bool = False
    """Whether there were so many different values that they are rounded."""
    counts: Counter[float] = field(default_factory=Counter)

    def add(self, value: float, count: int = 1) -> None:
        """Count a value."""
        self.smallest, self.largest = min(self.smallest, value), max(self.largest, value)
        self._count(value, count)

    def merge(self, other: "ValueCounts") -> None:
        """Add the counts of other values."""
        if other.rounded and not self.rounded:
            self._round()
        for value, count in other.counts.items():
            self._count(value, count)
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)

    @property
    def total(self) -> int:
        """Number of values."""
        return self.counts.total()

    def median(self) -> float:
        """The median, as `statistics.median` has it; of rounded values where there were too many."""
        upper = self._at(self.total // 2)
        return upper if self.total % 2 else (self._at(self.total // 2 - 1) + upper) / 2

    def _at(self, place: int) -> float:
        """The value at a place of the sorted values."""
        for value in sorted(self.counts):
            place -= self.counts[value]
            if place < 0:
                return value
        raise ValueError("expected a value to have been added")

    def _count(self, value: float, count: int) -> None:
        self.counts[_rounded(value) if self.rounded else value] += count
        if len(self.counts) > MAX_DISTINCT and not self.rounded:
            self._round()

    def _round(self) -> None:
        self.rounded = True
        exact, self.counts = self.counts, Counter()
        for value, count in exact.items():
            self.counts[_rounded(value)] += count


def _rounded(value: float) -> float:
    return float(f"{value:.{ROUNDED_DIGITS}g}")
