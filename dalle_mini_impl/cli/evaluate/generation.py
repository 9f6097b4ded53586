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
    Count,
    FiniteFloat,
    candidates_option,
    echo_text,
    examples,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE

if TYPE_CHECKING:
    from dalle_mini_impl.evaluate.generation import EvaluationContext, GeneratedPictures
    from dalle_mini_impl.evaluate.intervals import Share

SHEET_BEST = 3
"""Drawn pictures for each prompt on the sheet."""


@click.command(
    epilog=examples(
        "dalle evaluate generation emoji --pairs 20 --candidates 4",
        "dalle evaluate generation runs/mine/model --data runs/mine/store --sheet best.png --json figures.json",
    )
)
@reference_options()
@click.option("--pairs", type=Count(), default=100, show_default=True, help="Captioned pairs of each split.")
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
@click.option("--sweep-pairs", type=Count(), default=40, show_default=True, help="Pairs of the sweep.")
@click.option(
    "--judge-size",
    type=Count(16),
    metavar="PX",
    help="Side of the pictures that judges see. [default: the model's; one size for all compares models fairly]",
)
@click.option("--sheet", type=PICTURE_FILE, help="Sheet of real pictures, each beside the best drawn ones.")
def generation(model: str, json_file: str | None, sheet: Path | None, **options: Any) -> None:
    """Measure the R-precision of MODEL's pictures.

    A picture for "a red heart" is right at top-5 if the real pictures of a red heart are among those of the five
    captions it resembles most. Captions of the training split and held-out ones are drawn, and the pictures of both
    compared with all pictures of the data. Two judges measure resemblance: EfficientNet-Lite0, and the bare pixels.
    In the emoji set, a linear probe on their features also tells whose style a picture has. Needs the extra judge.
    """
    start = time.perf_counter()
    echo = partial(echo_text, json_file=json_file)
    if not options["sweep"]:
        options["temperatures"] = ()
        options["guidances"] = ()
    context = load_context(model, options)
    echo(heading(context))

    from dalle_mini_impl.evaluate.generation import (
        generation_rows,
        nearest_training_pictures,
        reconstruction_rows,
        reference_rows,
        sweep,
    )
    from dalle_mini_impl.evaluate.intervals import share_table
    from dalle_mini_impl.evaluate.styles import style_figures

    rows = [*reference_rows(context), *reconstruction_rows(context)]
    echo(share_table(rows))
    generated_rows, pictures = generation_rows(context)
    held_out = pictures.get("held-out pairs")  # of sets with vendors, whose styles prompts name
    style = style_figures(context, held_out) if held_out else None
    echo(share_table([*generated_rows, style.together] if style else generated_rows))
    if style:
        echo(f"style of held-out pairs right: drawn {format_shares(style.drawn)}; real art {format_shares(style.real)}")
    nearest = nearest_training_pictures(context, pictures)
    echo("nearest picture of the training split, median cosine of features: " + format_cosines(nearest))
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
        "judge_size": context.reference.size,
        "rows": [dataclasses.asdict(row) for row in [*rows, *generated_rows]],
        "style": dataclasses.asdict(style) if style else None,
        "nearest_training": {name: round(cosine, 4) for name, cosine in nearest.items()},
        "sweep": [dataclasses.asdict(result) for result in sweep_results],
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json_file(json_file, figures)
    if sheet:
        echo(write_sheet(context, pictures, sheet))


def format_cosines(cosines: dict[str, float]) -> str:
    """Names with their cosines, on one line."""
    return ", ".join(f"{name} {cosine:.2f}" for name, cosine in cosines.items()) or "none"


def format_shares(shares: "dict[str, Share]") -> str:
    """A share by each judge, on one line."""
    from dalle_mini_impl.evaluate.intervals import format_share

    return ", ".join(f"{judge} {format_share(share)}" for judge, share in shares.items())


def write_sheet(context: "EvaluationContext", pictures: "dict[str, GeneratedPictures]", path: Path) -> Path:
    """Write for each prompt the real picture and beside it the best drawn ones, with the prompt underneath."""
    from PIL import Image

    from dalle_mini_impl.util.images import contact_sheet, to_images
    from dalle_mini_impl.util.save_picture import save_picture

    picture_size = context.dalle.image_tokenizer.config.size
    strips, labels, records = [], [], []
    for name, group in pictures.items():
        for index, result in zip(group.indices, group.results, strict=True):
            best = result[:SHEET_BEST]
            real = to_images(context.reference.pixels([index], picture_size))
            images = [*real, *(candidate.image for candidate in best)]
            large = [image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC) for image in images]
            strips.append(contact_sheet(large, len(large)))
            labels.append(f"{name.split()[0]}: {result.prompt}")
            records += result.metadata(best)["pictures"]
    settings = next(iter(pictures.values())).results[0].settings
    return save_picture(contact_sheet(strips, labels=labels, gap=8), path, {**settings, "pictures": records})
