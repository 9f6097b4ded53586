"""`dalle evaluate precision`: what lower precision changes."""

import dataclasses

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES
from dalle_mini_impl.cli.options import (
    CommaSeparated,
    candidates_option,
    device_option,
    echo_text,
    examples,
    json_option,
    seed_option,
    write_json_file,
)
from dalle_mini_impl.config.sampling import PRECISIONS


@click.command(epilog=examples('dalle evaluate precision emoji "a red heart" "a cat" --precisions bf16 -n 4'))
@click.argument("model", default="emoji")
@click.argument("prompts", nargs=-1)
@click.option(
    "--precisions",
    type=CommaSeparated(click.Choice(PRECISIONS), minimum=1),
    default="bf16,int8",
    show_default=True,
    metavar="A,B",
    help="Number formats to compare with fp32, such as bf16.",
)
@candidates_option(16, "Pictures per prompt.")
@seed_option("Determines the pictures.")
@json_option(FIGURES)
@device_option()
def precision(
    model: str,
    prompts: tuple[str, ...],
    precisions: tuple[str, ...],
    candidates: int,
    seed: int,
    json_file: str | None,
    device: str,
) -> None:
    """Measure how far MODEL's predictions and pictures are from those of fp32, from the same seeds.

    Without PROMPTS eight prompts of the emoji set's domain are used.
    """
    from dalle_mini_impl.evaluate.precision import PROMPTS, drift_table, measure_drift

    drifts = measure_drift(model, precisions, prompts or PROMPTS, candidates, seed, device)
    echo_text(drift_table(drifts), json_file)
    write_json_file(json_file, {"model": model, "drift": [dataclasses.asdict(drift) for drift in drifts]})
