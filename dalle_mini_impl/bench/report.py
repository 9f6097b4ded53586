"""What a benchmark found, as a table and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchRow:
    """One piece of work, ours beside one peer's or alone."""

    row: str
    """Such as `sample/16/guided`."""
    ours: float
    """Seconds; nats or dB in the learning race."""
    peer: str = ""
    theirs: float = math.nan
    limit_share: float = math.nan
    """Least time the machine allows for this work divided by ours, 0 to 1."""
    note: str = ""
    """Speed and memory in the units people compare."""
    higher_is_better: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times better ours is; NaN without a peer, where ours may also be 0."""
        if math.isnan(self.theirs):
            return math.nan
        return self.ours / self.theirs if self.higher_is_better else self.theirs / self.ours

    def facts(self) -> dict[str, Any]:
        """For JSON, which knows no NaN."""
        values = {**asdict(self), "ratio": self.ratio}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }


def table(rows: Sequence[BenchRow]) -> str:
    """Aligned text, one line a row."""
    header = ("row", "ours", "peer", "theirs", "ratio", "of limit", "")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cells(row: BenchRow) -> tuple[str, ...]:
    return (
        row.row,
        f"{row.ours:.4g}",
        row.peer,
        _shown(row.theirs, ".4g"),
        _shown(row.ratio, ".2f") + "x" * (not math.isnan(row.ratio)),
        _shown(row.limit_share, ".0%"),
        row.note,
    )


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
