"""Smallest, median and largest of values that were only counted."""

import statistics

import numpy as np
import pytest

from dalle_mini_impl.data import value_counts
from dalle_mini_impl.data.value_counts import ValueCounts


def counted(values):
    counts = ValueCounts()
    for value in values:
        counts.add(value)
    return counts


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 200])
def test_the_median_is_that_of_the_list(count):
    values = np.random.default_rng(count).integers(0, 12, count).tolist()
    counts = counted(values)
    assert (counts.smallest, counts.median(), counts.largest) == (min(values), statistics.median(values), max(values))
    assert counts.total == count


def test_no_median_of_nothing():
    with pytest.raises(ValueError, match="expected a value"):
        ValueCounts().median()


def test_merged_counts_equal_those_of_all():
    values = np.random.default_rng(3).normal(5, 2, 101).tolist()
    merged = counted(values[:40])
    merged.merge(counted(values[40:]))
    assert merged == counted(values)


def test_too_many_different_values_are_rounded(monkeypatch):
    monkeypatch.setattr(value_counts, "MAX_DISTINCT", 50)
    values = np.random.default_rng(3).uniform(1, 1.01, 5000).tolist()
    counts = counted(values)
    assert counts.rounded
    assert len(counts.counts) <= 11
    assert (counts.smallest, counts.largest, counts.total) == (min(values), max(values), 5000)
    assert counts.median() == pytest.approx(statistics.median(values), rel=5e-4)
    merged = counted(values[:10])
    merged.merge(counted(values[10:]))
    assert merged == counts
