"""Shares with their uncertainty, and the tables that show them. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOP = (1, 5)
CONFIDENCE = 1.96  # standard normal quantile of a 95 % interval


@dataclass(frozen=True)
class Share:
    """A measured share with its 95 % interval, all 0 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ShareRow:
    """R-precision of one group of pictures by every judge."""

    name: str
    count: int
    """Captioned pairs that were measured; several candidates of one prompt count once."""
    shares: Mapping[str, tuple[Share, ...]]
    """Judge -> top-1 and top-5."""


def share(values: Sequence[float]) -> Share:
    """Mean of independent values in [0, 1], with Wilson's score interval.

    For hits and misses that is the usual interval. For values in between, such as the share of a prompt's
    candidates that hit, it errs on the wide side, as no variable in [0, 1] varies more than a hit or miss.

    Args:
        values: at least one.
    """
    count, mean = len(values), math.fsum(values) / len(values)
    shrink = 1 + CONFIDENCE**2 / count
    centre = (mean + CONFIDENCE**2 / (2 * count)) / shrink
    spread = mean * (1 - mean) / count + CONFIDENCE**2 / (4 * count**2)
    half = CONFIDENCE / shrink * math.sqrt(spread)
    return Share(mean, max(0.0, centre - half), min(1.0, centre + half))


def table(rows: Sequence[ShareRow]) -> str:
    """Rows as aligned text: for each judge top-1 and top-5, each with its 95 % interval."""
    judges = list(rows[0].shares)
    heads = [("", "", *(judge if k == TOP[0] else "" for judge in judges for k in TOP))]
    heads.append(("", "pairs", *(f"top-{k}" for _ in judges for k in TOP)))
    body = [(row.name, str(row.count), *(cell(value) for j in judges for value in row.shares[j])) for row in rows]
    lines = [*heads, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def cell(value: Share) -> str:
    """A share as `.31 (.22–.41)`."""
    return f"{_short(value.value)} ({_short(value.low)}–{_short(value.high)})"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of cells, all with the same keys, as an aligned Markdown table."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _short(number: float) -> str:
    return f"{number:.2f}".replace("0.", ".", 1) if number < 0.995 else "1.0"
