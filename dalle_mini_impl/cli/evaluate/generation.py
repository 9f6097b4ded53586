"""`dalle evaluate generation`: R-precision of generated pictures."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.evaluate.common import heading, load_context, reference_options
from dalle_mini_impl.cli.options import (
    CommaSeparated,
    FiniteFloat,
    candidates_option,
    echo_text,
    examples,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PNG_FILE

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.results import Result


@click.command(
    epilog=examples(
        "dalle evaluate generation emoji --pairs 20 --candidates 4",
        "dalle evaluate generation runs/mine/model --sweep --sheet best.png --json figures.json",
    )
)
@reference_options()
@click.option("--pairs", type=click.IntRange(1), default=100, show_default=True, help="Captioned pairs of each split.")
@candidates_option(16, "Pictures per prompt.")
@click.option(
    "--languages",
    type=CommaSeparated(),
    default="",
    metavar="A,B",
    help="More prompt languages, such as de,no,sl,et,nl.",
)
@click.option("--sweep", is_flag=True, help="Also try every temperature with every guidance.")
@click.option(
    "--temperatures",
    type=CommaSeparated(FiniteFloat(), minimum=1),
    default="0.5,0.7,0.9,1.1",
    show_default=True,
    metavar="A,B",
    help="Of the sweep.",
)
@click.option(
    "--guidances",
    type=CommaSeparated(FiniteFloat(), minimum=1),
    default="1,2,3,5",
    show_default=True,
    metavar="A,B",
    help="Of the sweep.",
)
@click.option("--sweep-pairs", type=click.IntRange(1), default=40, show_default=True, help="Pairs of the sweep.")
@click.option("--sheet", type=PNG_FILE, help="PNG for the best pictures of held-out pairs.")
def generation(model: str, json_file: str | None, sheet: Path | None, **options: Any) -> None:
    """Measure the R-precision of MODEL's pictures.

    A picture for "a red heart, noto" is right at top-5 if real art of a red heart is among the five concepts it
    resembles most. Two judges measure resemblance: EfficientNet-Lite0, and the bare pixels. Needs the extra judge.
    """
    start = time.perf_counter()
    echo = partial(echo_text, json_file=json_file)
    if not options["sweep"]:
        options["temperatures"] = ()
        options["guidances"] = ()
    context = load_context(model, options)
    echo(heading(context))

    from dalle_mini_impl.evaluate.generation import generation_rows, reconstruction_rows, reference_rows, sweep
    from dalle_mini_impl.evaluate.intervals import share_table

    rows = [*reference_rows(context), *reconstruction_rows(context)]
    echo(share_table(rows))
    generated_rows, held_out = generation_rows(context)
    echo(share_table(generated_rows))
    sweep_results = sweep(context)
    if sweep_results:
        echo(share_table([row for result in sweep_results for row in result.rows]))
        best = max(sweep_results, key=lambda result: result.objective)
        echo(f"best: temperature {best.temperature:g}, guidance {best.guidance:g}")
    figures = {
        **context.dalle.source,
        "sampling": dataclasses.asdict(context.dalle.sampling),
        "data": options["data"],
        "settings": dataclasses.asdict(context.settings),
        "rows": [dataclasses.asdict(row) for row in [*rows, *generated_rows]],
        "sweep": [dataclasses.asdict(result) for result in sweep_results],
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json_file(json_file, figures)
    if sheet:
        echo(write_sheet(held_out.results, sheet))


def write_sheet(results: "list[Result]", path: Path) -> Path:
    """Write the best picture of each prompt, at twice its size, with the prompt underneath."""
    from PIL import Image

    from dalle_mini_impl.util.images import contact_sheet, save_png

    best = [result[0].image for result in results]
    large = [image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC) for image in best]
    pictures = [picture for result in results for picture in result.metadata([result[0]])["pictures"]]
    sheet = contact_sheet(large, labels=[result.prompt for result in results])
    return save_png(sheet, path, {**results[0].settings, "pictures": pictures})
