"""Rows of attention masks: sampling with sparse attention masks beside full causal attention."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.sampling import randomise
from dalle_mini_impl.bench.shapes import Shape
from dalle_mini_impl.bench.timing import median_seconds
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.packing import choose_precision, pack

FULL = ("full",)
SCHEDULES = {
    "row": (("row",), ""),
    "column": (("column",), ""),
    "conv": (("conv",), ""),
    "dalle-1": (("row", "column", "row", "row"), "conv"),
}
"""Schedule -> masks of the layers, repeated in turn, and of the last layer; `dalle-1` is that of Ramesh et al. 2021,
appendix B.1."""


def mask_rows(shape: Shape, machine: MachineSpeed, repeats: int, counts: Sequence[int]) -> Iterator[BenchRow]:
    """Time sampling without guidance, at a shape's lengths and at four times as many positions.

    Yields:
        Rows named `masks/TEXT+IMAGE/CANDIDATES/SCHEDULE`, whose peer is the same model with full attention.
    """
    for variant in (shape, replace(shape, text_length=4 * shape.text_length, side=2 * shape.side)):
        models = {name: _model(variant, machine, *masks) for name, masks in {"full": (FULL, ""), **SCHEDULES}.items()}
        prompt, sampling = Prompt([3] * variant.text_length), SamplingConfig(guidance=1.0)
        for count in counts:
            runs = {
                name: partial(generate, model, variant.stream(), prompt, list(range(count)), sampling)
                for name, model in models.items()
            }
            seconds = median_seconds(runs, machine.device, repeats)
            for name in SCHEDULES:
                row_name = f"masks/{variant.text_length}+{variant.image_length}/{count}/{name}"
                masked_ms, full_ms = (1e3 * seconds[run] / variant.image_length for run in (name, "full"))
                note = f"{masked_ms:.2f} ms/step, full {full_ms:.2f}"
                yield BenchRow(
                    row_name, seconds[name], "full", seconds["full"], note=note, details={"shape": shape.name}
                )


def _model(shape: Shape, machine: MachineSpeed, attention_masks: tuple[str, ...], last_attention_mask: str) -> Decoder:
    transformer = shape.build(attention_masks, last_attention_mask).to(machine.device).eval()
    randomise(transformer)
    return pack(transformer, choose_precision("auto", transformer), shape.stream().image_range)
