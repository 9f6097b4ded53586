"""Rows of benchmark results, as a table and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dalle_mini_impl.util.tables import aligned_table


@dataclass(frozen=True)
class BenchRow:
    """One piece of work: this package beside one peer, or alone."""

    name: str
    """Such as `sample/16/guided`."""
    ours: float
    """Seconds of this package; nats or dB in the learning races."""
    peer: str = ""
    """Name of the peer; empty for none."""
    theirs: float = math.nan
    """The peer's value in the same unit."""
    limit_share: float = math.nan
    """Least seconds that the machine's limits allow for this work divided by `ours`, in [0, 1]."""
    note: str = ""
    """Speed and memory in the units in which they are usually compared."""
    higher_is_better: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    """Further values, for JSON only."""

    @property
    def ratio(self) -> float:
        """By which factor `ours` is better than `theirs`; NaN without a peer, or where it would be infinite."""
        better, worse = (self.ours, self.theirs) if self.higher_is_better else (self.theirs, self.ours)
        return math.nan if math.isnan(self.theirs) or not worse else better / worse

    def as_json(self) -> dict[str, Any]:
        """All fields and the ratio as plain values, None in place of NaN, which JSON lacks."""
        values = {**asdict(self), "ratio": self.ratio}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }


def bench_table(rows: Sequence[BenchRow]) -> str:
    """Aligned text, one line per row."""
    titles = ("row", "ours", "peer", "theirs", "ratio", "of limit", "")
    return aligned_table([titles, *(_cells(row) for row in rows)])


def row_line(row: BenchRow) -> str:
    """One line for a row as soon as it is measured: this package's value, then the peer's under the peer's name."""
    _, ours, peer, theirs, ratio, _, note = _cells(row)
    beside = f"; {peer} {theirs}" + f", {ratio}" * bool(ratio) if theirs else ""
    return f"{row.name}: {ours}{beside}" + f"; {note}" * bool(note)


def _cells(row: BenchRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.ours:.4g}",
        row.peer,
        _format(row.theirs, ".4g"),
        _format(row.ratio, ".2f") + "x" * (not math.isnan(row.ratio)),
        _format(row.limit_share, ".0%"),
        row.note,
    )


def _format(value: float, specification: str) -> str:
    """A number, or nothing for NaN."""
    return "" if math.isnan(value) else format(value, specification)
