"""Fractions and means with their 95 % confidence intervals, and the tables that show them. Imports no torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dalle_mini_impl.util.tables import aligned_table

TOP_K = (1, 5)
"""Depths at which a hit counts: the nearest concept, or one of the nearest five."""
NORMAL_QUANTILE = 1.96
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Share:
    """A measured fraction with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A measured mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ShareRow:
    """R-precision of one group of pictures, by every judge."""

    name: str
    count: int
    """Captioned pairs measured; several candidates of one prompt count once."""
    shares: Mapping[str, tuple[Share, ...]]
    """Judge -> fraction of hits at each depth of `TOP_K`."""


def mean_share(values: Sequence[float]) -> Share:
    """Mean of independent values in [0, 1] with Wilson's score interval (Wilson 1927).

    The interval is exact in form for hits and misses. For values in between, such as the fraction of a prompt's
    candidates that hit, it is conservative: no variable in [0, 1] has a larger variance than a hit-or-miss variable
    of the same mean.

    Args:
        values: at least one.
    """
    count = len(values)
    mean = math.fsum(values) / count
    shrink = 1 + NORMAL_QUANTILE**2 / count
    centre = (mean + NORMAL_QUANTILE**2 / (2 * count)) / shrink
    variance = mean * (1 - mean) / count + NORMAL_QUANTILE**2 / (4 * count**2)
    half_width = NORMAL_QUANTILE / shrink * math.sqrt(variance)
    return Share(mean, max(0.0, centre - half_width), min(1.0, centre + half_width))


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of independent values with the interval of the normal distribution; none around a single value.

    Args:
        values: at least one.
    """
    mean = statistics.fmean(values)
    half_width = NORMAL_QUANTILE * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Mean(mean, mean - half_width, mean + half_width)


def share_table(rows: Sequence[ShareRow]) -> str:
    """Rows as aligned text: for each judge its top-1 and top-5 fractions, each with its 95 % interval."""
    judges = list(rows[0].shares)
    judge_titles = ["", "", *(judge if k == TOP_K[0] else "" for judge in judges for k in TOP_K)]
    depth_titles = ["", "pairs", *(f"top-{k}" for _ in judges for k in TOP_K)]
    body = [
        [row.name, str(row.count), *(format_share(share) for judge in judges for share in row.shares[judge])]
        for row in rows
    ]
    return aligned_table([judge_titles, depth_titles, *body])


def format_share(share: Share) -> str:
    """A share as `.31 (.22–.41)`."""
    return f"{_two_digits(share.value)} ({_two_digits(share.low)}–{_two_digits(share.high)})"


def format_mean(mean: Mean) -> str:
    """A mean as `1.31 (1.22–1.41)`."""
    return f"{mean.value:.2f} ({mean.low:.2f}–{mean.high:.2f})"


def _two_digits(fraction: float) -> str:
    return f"{fraction:.2f}".replace("0.", ".", 1) if fraction < 0.995 else "1.0"
