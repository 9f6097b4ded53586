"""Rows of attention masks: sampling with layers that look at a part of the picture, beside layers that look at all."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.sampling import randomise
from dalle_mini_impl.bench.shapes import Shape
from dalle_mini_impl.bench.timing import median_seconds
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.packing import choose_precision, pack

FULL = ("full",)
SCHEDULES = {
    "row": (("row",), ""),
    "column": (("column",), ""),
    "conv": (("conv",), ""),
    "dalle-1": (("row", "column", "row", "row"), "conv"),
}
"""Masks of the layers, in turn, and of the last (Ramesh et al. 2021, appendix B.1)."""


def mask_rows(shape: Shape, machine: MachineSpeed, repeats: int, counts: Sequence[int]) -> Iterator[BenchRow]:
    """Time drawing pictures without guidance, at a shape's lengths and at four times as many positions.

    Rows are named `masks/TEXT+IMAGE/CANDIDATES/SCHEDULE`; what they are held against is the same model with full
    attention.
    """
    for longer in (shape, replace(shape, text_length=4 * shape.text_length, side=2 * shape.side)):
        models = {name: _model(longer, machine, *masks) for name, masks in {"full": (FULL, ""), **SCHEDULES}.items()}
        prompt, sampling = Prompt([3] * longer.text_length), SamplingConfig(guidance=1.0)
        for count in counts:
            runs = {
                name: partial(generate, model, longer.stream(), prompt, list(range(count)), sampling)
                for name, model in models.items()
            }
            seconds = median_seconds(runs, machine.device, repeats)
            for name in SCHEDULES:
                row = f"masks/{longer.text_length}+{longer.image_length}/{count}/{name}"
                steps = [1e3 * seconds[which] / longer.image_length for which in (name, "full")]
                note = f"{steps[0]:.2f} ms/step, full {steps[1]:.2f}"
                yield BenchRow(row, seconds[name], "full", seconds["full"], note=note, details={"shape": shape.name})


def _model(
    shape: Shape, machine: MachineSpeed, attention_masks: tuple[str, ...], last_attention_mask: str
) -> Transformer:
    transformer = shape.build(attention_masks, last_attention_mask).to(machine.device).eval()
    randomise(transformer)
    return pack(transformer, choose_precision("auto", transformer), shape.stream().image_range)
