"""Rows of growth: the cost of sampling over the number of candidates, of image ids and the width."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.sampling import sampling_rows
from dalle_mini_impl.bench.shapes import Shape
from dalle_mini_impl.util.plots import new_figure, save_figure

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)
SIDES = (4, 8, 12, 16, 24, 32)
"""Of the token grid; image ids are their squares."""
WIDTHS = (128, 256, 512, 768, 1024)
FIXED_CANDIDATES = 16
"""Candidates where another quantity grows."""
HEAD_WIDTH = 64
AXES = {"candidates": "candidates", "image-ids": "image ids of a picture", "width": "width"}
"""Quantity that grows -> axis label."""


def growth_rows(shape: Shape, machine: MachineSpeed, repeats: int) -> Iterator[BenchRow]:
    """Time sampling with guidance while one quantity grows and the others are the shape's.

    Yields:
        Rows named `growth/AXIS/VALUE`, whose `details` have `ms_per_step` and `least_ms`, the least that the machine's
        limits allow.
    """
    runs = [("candidates", count, shape, count) for count in CANDIDATES]
    runs += [("image-ids", side**2, replace(shape, side=side), FIXED_CANDIDATES) for side in SIDES]
    runs += [
        ("width", width, replace(shape, n_embd=width, n_head=width // HEAD_WIDTH), FIXED_CANDIDATES) for width in WIDTHS
    ]
    for axis, value, grown, count in runs:
        (row,) = sampling_rows(grown, machine, {}, repeats, [count], modes=(True,))
        step = 1e3 * row.ours / grown.image_length
        details = {"shape": shape.name, "ms_per_step": step, "least_ms": step * row.limit_share}
        yield replace(row, name=f"growth/{axis}/{value}", details=details)


def plot_growth(rows: Sequence[BenchRow], path: Path) -> None:
    """Plot the rows of `growth_rows`, one panel for each axis, both scales logarithmic.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(12, 3.6, extra="bench")
    for panel, (axis, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        of_axis = [row for row in rows if row.name.startswith(f"growth/{axis}/")]
        values = [int(row.name.split("/")[2]) for row in of_axis]
        panel.loglog(values, [row.details["ms_per_step"] for row in of_axis], "o-", label="measured")
        panel.loglog(values, [row.details["least_ms"] for row in of_axis], "--", label="limit of this machine")
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("milliseconds per step")
    figure.axes[0].legend()
    save_figure(figure, path)
