"""How the cost of sampling grows with candidates, image ids and width."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.sampling import sampling_rows
from dalle_mini_impl.bench.shapes import Shape
from dalle_mini_impl.util.plots import new_figure, save_figure

CANDIDATES, SIDES, WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128), (4, 8, 12, 16, 24, 32), (128, 256, 512, 768, 1024)
USUAL, HEAD = 16, 64
"""Candidates where something else grows, and the width of a head."""
AXES = {"candidates": "candidates", "image-ids": "image ids of a picture", "width": "width"}


def growth_rows(shape: Shape, machine: MachineSpeed, repeats: int) -> Iterator[BenchRow]:
    """Time sampling with guidance while one of the three grows and the others are the shape's.

    Rows are named `growth/AXIS/VALUE` and have `ms_per_step` and, of what the machine allows, `least_ms` in `details`.
    """
    runs = [("candidates", count, shape, count) for count in CANDIDATES]
    runs += [("image-ids", side**2, replace(shape, side=side), USUAL) for side in SIDES]
    runs += [("width", width, replace(shape, n_embd=width, n_head=width // HEAD), USUAL) for width in WIDTHS]
    for axis, value, grown, count in runs:
        (row,) = sampling_rows(grown, machine, {}, repeats, [count], modes=(True,))
        step = 1e3 * row.ours / grown.image_length
        details = {"shape": shape.name, "ms_per_step": step, "least_ms": step * row.limit_share}
        yield replace(row, row=f"growth/{axis}/{value}", details=details)


def plot(rows: Sequence[BenchRow], path: Path) -> None:
    """Draw what `growth_rows` gave, one panel for each axis, both scales logarithmic.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = new_figure(12, 3.6, extra="bench")
    for panel, (axis, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        found = [(int(row.row.split("/")[2]), row.details) for row in rows if row.row.startswith(f"growth/{axis}/")]
        values = [value for value, _ in found]
        panel.loglog(values, [details["ms_per_step"] for _, details in found], "o-", label="measured")
        panel.loglog(values, [details["least_ms"] for _, details in found], "--", label="limit of this machine")
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("milliseconds per step")
    figure.axes[0].legend()
    save_figure(figure, path)
