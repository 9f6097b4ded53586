"""`dalle complete`: redraws parts of a picture, or draws variations of it."""

from typing import Any

import click

from dalle_mini_impl.cli.options import examples, model_option, precision_option
from dalle_mini_impl.cli.sampling_options import (
    generate_arguments,
    sampled_id_count,
    sampling_options,
    write_results,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import without_surrogates

REGIONS = {
    "keep_rows": "--keep-rows",
    "box": "--box",
    "mask": "--mask",
    "panel": "--panel",
    "variations": "--variations",
}
"""Options that say what to redraw; one of them is needed."""


@click.command(
    epilog=examples(
        'dalle complete photo.png "a red heart" --keep-rows 8',
        'dalle complete photo.png "a hat" --box 0,0,64,32 -n 128',
        "dalle complete photo.png --variations --strength 0.3",
    )
)
@click.argument("image", type=click.Path())
@click.argument("prompt", default="")
@click.option("--keep-rows", type=int, help="Keep this many rows of the token grid; redraw all below.")
@click.option("--box", metavar="LEFT,TOP,RIGHT,BOTTOM", help="Redraw this rectangle, in pixels of IMAGE.")
@click.option("--mask", type=click.Path(), help="Redraw what is white in this picture, as large as IMAGE.")
@click.option("--panel", is_flag=True, help="Squeeze IMAGE into the upper half and draw the lower one.")
@click.option("--variations", is_flag=True, help="Redraw random cells of the token grid, other ones per candidate.")
@click.option(
    "--strength", default=0.5, show_default=True, help="With --variations: fraction of the cells that is redrawn."
)
@click.option(
    "--paste/--no-paste", default=True, show_default=True, help="Put the original pixels back into the kept cells."
)
@model_option()
@precision_option()
@sampling_options
def complete(image: str, prompt: str, **options: Any) -> None:
    """Redraw parts of a picture, or draw variations of it.

    The grid of pictures begins with IMAGE in the size of the model, and PROMPT describes the whole picture. A
    redrawn cell depends only on the cells above it and left of it in its row. Kept cells further down affect the
    ranking alone, so sample many candidates with --box and --mask.
    """
    given = [name for key, name in REGIONS.items() if options[key] is not None and options[key] is not False]
    if len(given) != 1:
        raise UserError(
            f"expected one of {', '.join(REGIONS.values())}, got {' and '.join(given) or 'none'}; choose what to redraw"
        )
    box = read_box(options["box"])

    from tqdm import tqdm

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import open_picture

    text = without_surrogates(prompt)
    picture = open_picture(image)
    mask = open_picture(options["mask"]) if options["mask"] else None
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    arguments = generate_arguments(options)
    id_count = sampled_id_count(arguments, dalle.stream.image_length)
    with tqdm(total=id_count, unit=" ids", disable=None, leave=False) as bar:  # None: only on a terminal
        arguments |= {"chunk": options["chunk"], "progress": bar.update}
        if options["variations"]:
            result = dalle.variations(picture, text, strength=options["strength"], **arguments)
        else:
            region = {"rows": options["keep_rows"], "box": box, "mask": mask, "panel": options["panel"]}
            result = dalle.complete(picture, text, paste=options["paste"], **region, **arguments)
    if not options["variations"]:
        click.echo(describe_region(result.settings["canvas"]["redrawn"]), err=True)
    layout = {"columns": options["columns"], "scores": options["scores"]}
    write_results([result], result.grid(**layout), {**result.metadata(), "layout": layout}, options)


def read_box(text: str | None) -> tuple[int, ...] | None:
    """The four whole numbers of `--box`.

    Raises:
        UserError: it is anything else.
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(
            f"expected four whole numbers LEFT,TOP,RIGHT,BOTTOM, got --box {text}; try --box 0,0,32,32"
        ) from error
    return left, top, right, bottom


def describe_region(redrawn: list[str]) -> str:
    """One line on how many cells were redrawn, and how many kept ones could not influence all of them.

    Args:
        redrawn: rows of the token grid, `#` for a redrawn cell and `.` for a kept one.
    """
    cells = "".join(redrawn)
    kept_later = cells.lstrip(".").count(".")
    line = f"redrew {cells.count('#')} of {len(cells)} cells"
    if kept_later:
        line += f"; {kept_later} kept cells come after the first redrawn one and did not influence all of them"
    return line
