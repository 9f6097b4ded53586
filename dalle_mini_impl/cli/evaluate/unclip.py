"""`dalle evaluate unclip`: DALL-E 1 against DALL-E 2, and what pictures changed through their embeddings show."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.evaluate.common import heading, load_context, reference_options
from dalle_mini_impl.cli.options import (
    MAX_COUNT,
    CommaSeparated,
    Count,
    FiniteFloat,
    candidates_option,
    echo_text,
    examples,
    keep_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE
from dalle_mini_impl.config.sampling import DECODERS
from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.evaluate.generation import EvaluationContext
    from dalle_mini_impl.evaluate.manipulations import (
        EditFigures,
        InterpolationFigures,
        InversionFigures,
        VariationFigures,
    )
    from dalle_mini_impl.evaluate.unclip import Comparison
    from dalle_mini_impl.scorer.scorer import Scorer

SECTIONS = ("systems", "variations", "interpolations", "edits", "inversion")
"""What can be measured, in this order."""
USED_BY = {"sheet": ("systems",), "other_prior": ("systems",), "other_scorer": ("interpolations", "edits")}
"""Options that some sections use alone."""
OWN_SCORER = "own scorer"
SHEET_ZOOM = 2
"""How many times larger pictures are shown on the sheet."""


@click.command(
    epilog=examples(
        "dalle evaluate unclip emoji --pairs 20 --candidates 4 --pictures 10",
        "dalle evaluate unclip runs/mine --data runs/store --other-scorer runs/other --sheet sheet.png",
        "dalle evaluate unclip runs/mine --only inversion",
    )
)
@reference_options()
@click.option("--only", type=CommaSeparated(click.Choice(SECTIONS), 1), metavar="A,B", help="Measure these alone.")
@click.option("--pairs", type=Count(), metavar="N", help="Held-out captions for each system.  [default: all]")
@candidates_option(16, "Pictures per caption.")
@keep_option(4, "Best pictures per caption that distances are measured of; variations per picture.")
@click.option("--pictures", type=Count(), default=100, show_default=True, help="Held-out pictures of other sections.")
@click.option("--steps", type=Count(2), default=8, show_default=True, metavar="N", help="Pictures per interpolation.")
@click.option("--theta", type=FiniteFloat(0, 1), default=0.5, show_default=True, help="How far text differences go.")
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default=DECODERS[0],
    show_default=True,
    help="What draws variations, interpolations and edits: the transformer, or a U-Net.",
)
@click.option("--other-scorer", metavar="NAME", help="Scorer that had no say in the pictures, to measure them as well.")
@click.option("--other-prior", metavar="NAME", help="Checkpoint with a prior of the other kind over MODEL's scorer.")
@click.option("--sheet", type=PICTURE_FILE, help="Sheet of real pictures, each beside the best one of every system.")
def unclip(model: str, json_file: str | None, sheet: Path | None, **options: Any) -> None:
    """Measure DALL-E 2 against DALL-E 1, and what can be done with image embeddings.

    systems draws held-out captions with and without image embeddings, from a prior, of the text and of the real
    picture. variations, interpolations and edits (text differences) change held-out pictures through their embeddings.
    inversion draws them again from the numbers that they are turned into. What MODEL has no part for is left out.
    Scorers are named as for dalle classify. Needs the extras judge and eval, and for samplers of a diffusion prior
    other than ddim also unclip.
    """
    start = time.perf_counter()
    echo = partial(echo_text, json_file=json_file)
    chosen = options["only"] or SECTIONS
    for name, sections in USED_BY.items():
        if {**options, "sheet": sheet}[name] and not {*sections} & {*chosen}:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"expected {' or '.join(sections)} in --only with {option}, got others; leave {option} out")
    context = load_context(model, {**options, "pairs": options["pairs"] or MAX_COUNT, "sweep_pairs": 1})
    scorers = load_scorers(context, options["other_scorer"])
    echo(heading(context))
    figures: dict[str, Any] = {}
    comparison: Comparison | None = None
    left_out: dict[str, str] = {}
    for section in chosen:
        try:
            measured, text = MEASURES[section](context, scorers, options)
        except UserError as error:
            if options["only"] or section in ("systems", "inversion"):  # every model can be measured by these
                raise
            left_out[section] = str(error)
            continue
        echo(f"\n{section}\n{text}")
        if section == "systems":
            comparison = measured
            left_out |= measured.left_out
            figures[section] = [dataclasses.asdict(system) for system in measured.systems]
        else:
            figures[section] = dataclasses.asdict(measured)
    for name, reason in left_out.items():
        echo(f"left out: {name}: {reason}")
    values = {
        **context.dalle.source,
        "sampling": dataclasses.asdict(context.dalle.sampling),
        "data": options["data"],
        "settings": {name: options[name] for name in SETTINGS},
        **figures,
        "left_out": left_out,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json_file(json_file, values)
    if sheet and comparison:
        echo(write_sheet(comparison, sheet, context.dalle.source))


SETTINGS = (
    *("pairs", "candidates", "keep", "pictures", "steps", "theta", "decoder", "other_scorer", "other_prior"),
    *("kinds", "seed"),
)
"""Options that the JSON file records."""


def load_scorers(context: "EvaluationContext", other: str | None) -> "dict[str, Scorer]":
    """The model's scorer, if it has one, and the other one."""
    from dalle_mini_impl.scorer.scorer import Scorer

    scorers = {OWN_SCORER: context.dalle.own_scorer} if context.dalle.own_scorer else {}
    if other:
        scorers[other] = Scorer.from_pretrained(other, str(context.dalle.transformer.device))
    return scorers


def measure_systems(
    context: "EvaluationContext", scorers: "dict[str, Scorer]", options: dict[str, Any]
) -> "tuple[Comparison, str]":
    """Compare the systems."""
    from dalle_mini_impl.evaluate.intervals import share_table
    from dalle_mini_impl.evaluate.unclip import compare_systems, comparison_table, with_prior_of

    others = [with_prior_of(context.dalle, options["other_prior"])] if options["other_prior"] else []
    comparison = compare_systems(context, min(options["keep"], options["candidates"]), others)
    rows = []
    for system in comparison.systems:
        rows += [*system.rows, *([system.style.together] if system.style else [])]
    return comparison, f"{share_table(rows)}\n\n{comparison_table(comparison.systems)}"


def measure_variations(
    context: "EvaluationContext", scorers: "dict[str, Scorer]", options: dict[str, Any]
) -> "tuple[VariationFigures, str]":
    """Measure variations."""
    from dalle_mini_impl.evaluate import manipulations
    from dalle_mini_impl.evaluate.intervals import format_mean, format_share, share_table

    figures = manipulations.measure_variations(context, options["pictures"], options["keep"], options["decoder"])
    lines = [share_table(figures.rows)]
    for name, distances in figures.distances.items():
        means = ", ".join(f"{judge} {format_mean(mean)}" for judge, mean in distances.items())
        lines.append(f"1 - cosine among {name}: {means}")
    lines.append(f"pictures whose variations all differ: {format_share(figures.different)}")
    return figures, "\n".join(lines)


def measure_interpolations(
    context: "EvaluationContext", scorers: "dict[str, Scorer]", options: dict[str, Any]
) -> "tuple[InterpolationFigures, str]":
    """Measure interpolations."""
    from dalle_mini_impl.evaluate import manipulations
    from dalle_mini_impl.evaluate.intervals import format_mean, format_share

    counts = (options["pictures"], options["steps"])
    figures = manipulations.measure_interpolations(context, scorers, *counts, options["decoder"])
    lines = [f"{figures.count} strips of {figures.steps} pictures"]
    for name, share in figures.monotonic.items():
        lines.append(
            f"by {name}: strips whose cosines with both ends never go back {format_share(share)}, steps forward "
            f"{format_mean(figures.forward[name])}"
        )
    if figures.both:
        lines.append(f"by both scorers: strips whose cosines with both ends never go back {format_share(figures.both)}")
    return figures, "\n".join(lines)


def measure_edits(
    context: "EvaluationContext", scorers: "dict[str, Scorer]", options: dict[str, Any]
) -> "tuple[EditFigures, str]":
    """Measure text differences."""
    from dalle_mini_impl.evaluate import manipulations
    from dalle_mini_impl.evaluate.intervals import format_share
    from dalle_mini_impl.util.tables import aligned_table

    chosen = (options["pictures"], options["theta"], options["decoder"])
    figures = manipulations.measure_edits(context, scorers, *chosen)
    table = [["", "target rises, source falls", "target rises", "source falls", "another name rises"]]
    for name, shares in figures.shares.items():
        note = f"{name}, which had a say" if name == OWN_SCORER else name
        values = (shares.both, shares.target, shares.source, shares.other)
        table.append([note, *(format_share(share) for share in values)])
    return figures, f"{figures.count} edits, theta {figures.theta:g}\n{aligned_table(table)}"


def measure_inversion(
    context: "EvaluationContext", scorers: "dict[str, Scorer]", options: dict[str, Any]
) -> "tuple[InversionFigures, str]":
    """Measure exact inversion."""
    from dalle_mini_impl.evaluate import manipulations
    from dalle_mini_impl.evaluate.intervals import format_share

    figures = manipulations.measure_inversion(context, options["pictures"])
    return figures, (
        f"pictures that come back id for id: {figures.right} of {figures.count}, {format_share(figures.exact)}; "
        f"other ids: {figures.different_ids}"
    )


MEASURES: dict[str, Callable[..., tuple[Any, str]]] = {
    "systems": measure_systems,
    "variations": measure_variations,
    "interpolations": measure_interpolations,
    "edits": measure_edits,
    "inversion": measure_inversion,
}
"""Section -> what measures it and says it in text, given the context, the scorers by name and the options."""


def write_sheet(comparison: "Comparison", path: Path, source: dict[str, str]) -> Path:
    """Write the real picture of some captions, and beside it the best one of each system."""
    from dalle_mini_impl.util.images import contact_sheet, enlarge
    from dalle_mini_impl.util.save_picture import save_picture

    images, labels = [], []
    for number, prompt in enumerate(comparison.prompts):
        images += [column[number] for column in comparison.examples.values()]
        labels += [prompt, *list(comparison.examples)[1:]]
    sheet = contact_sheet(enlarge(images, SHEET_ZOOM), len(comparison.examples), labels)
    return save_picture(sheet, path, source)
