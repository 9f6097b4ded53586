"""Intervals of means; those of fractions are tested with the figures that they belong to."""

import pytest

from dalle_mini_impl.evaluate.intervals import Mean, format_mean, mean_interval


def test_mean_interval_is_that_of_the_normal_distribution():
    mean = mean_interval([1.0, 3.0])
    assert (mean.value, mean.low, mean.high) == pytest.approx((2, 2 - 1.96, 2 + 1.96))
    assert mean_interval([5.0]) == Mean(5, 5, 5)
    assert format_mean(Mean(1.304, 1.22, 1.405)) == "1.30 (1.22–1.41)"
