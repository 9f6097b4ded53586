"""`dalle complete`: redraws parts of a picture, or draws variations of it."""

import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.options import Count, FiniteFloat, examples, model_option, precision_option
from dalle_mini_impl.cli.sampling_options import (
    announce_loading,
    check_format,
    generate_arguments,
    generate_shown,
    progress_total,
    sampling_options,
    use_scorer,
    write_results,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import without_surrogates

if TYPE_CHECKING:
    from torch import Tensor

EDGE = re.compile(r"-?[0-9]{1,9}|[0-9]{1,9}(\.[0-9]{1,9})?%")
"""An edge of `--box`."""
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
        'dalle complete photo.png "a hat" --box 0,0,100%,40% -n 128',
        "dalle complete photo.png --variations --strength 0.3",
    )
)
@click.argument("image", type=click.Path())
@click.argument("prompt", default="")
@click.option("--keep-rows", type=Count(0), help="Keep this many rows of the token grid; redraw all below.")
@click.option(
    "--box",
    metavar="LEFT,TOP,RIGHT,BOTTOM",
    help="Redraw this rectangle of IMAGE: pixels, or 25%.",
)
@click.option("--mask", type=click.Path(), help="Redraw what is white in this picture, as large as IMAGE.")
@click.option("--panel", is_flag=True, help="Squeeze IMAGE into the upper half and draw the lower one.")
@click.option("--variations", is_flag=True, help="Redraw random cells of the token grid, other ones per candidate.")
@click.option(
    "--strength",
    type=FiniteFloat(),
    default=0.5,
    show_default=True,
    help="With --variations: fraction of the cells that is redrawn.",
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
    edges = read_box(options["box"])
    options["decoder"] = options["decoder"] or "tokens"  # which alone can keep parts
    arguments = generate_arguments(options)

    from tqdm import tqdm

    from dalle_mini_impl.pipeline.canvas import Region, completion_canvas, variation_canvas
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import open_picture

    text = without_surrogates(prompt)
    picture = open_picture(image)
    box = box_in_pixels(edges, picture.size) if edges else None
    mask = open_picture(options["mask"]) if options["mask"] else None
    announce_loading(options["model"], "to redraw parts of a picture")
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    use_scorer(dalle, options["scorer"])
    check_format(dalle, arguments, options)
    id_count = progress_total(dalle, arguments)
    canvas_of = dalle.image_tokenizer, dalle.stream.config.grid, picture
    if options["variations"]:
        canvas = variation_canvas(*canvas_of, options["strength"])
    else:
        canvas = completion_canvas(
            *canvas_of, Region(options["keep_rows"], box, mask, options["panel"]), options["paste"]
        )
        click.echo(describe_region(dalle.stream.to_order(canvas.known.redraw)), err=True)
    with tqdm(total=id_count, unit=" ids", disable=None, leave=False) as bar:  # None: only on a terminal
        result = generate_shown(dalle, {"prompt": text, **arguments}, bar, options, canvas)
    layout = {"columns": options["columns"], "scores": options["scores"]}
    zoom = options["zoom"] or 1
    metadata = {**result.metadata(zoom=zoom), "layout": layout}
    write_results([result], result.grid(**layout, zoom=zoom), metadata, options, zoom)


def read_box(text: str | None) -> list[str] | None:
    """The four edges of `--box`: whole numbers of pixels, or numbers with `%`.

    Raises:
        UserError: it is anything else.
    """
    if text is None:
        return None
    edges = [edge.strip() for edge in text.split(",")]
    if len(edges) != 4 or not all(EDGE.fullmatch(edge) for edge in edges):
        raise UserError(
            f"expected four whole numbers LEFT,TOP,RIGHT,BOTTOM, got --box {text}; try --box 0,0,32,32, or percentages "
            f"such as --box 0,0,100%,40%"
        )
    return edges


def box_in_pixels(edges: list[str], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The smallest box in pixels of a picture of `size` (width, height) that holds the box with these edges."""
    left, top, right, bottom = (
        Fraction(edge[:-1]) * side / 100 if edge.endswith("%") else Fraction(edge)
        for edge, side in zip(edges, size * 2, strict=True)
    )
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def describe_region(cells: "Tensor") -> str:
    """One line on how many cells are redrawn, and how many kept ones cannot influence all of them.

    Args:
        cells: (h * w,) bool, the cells to redraw in the order of the stream.
    """
    redrawn = int(cells.sum())
    kept_later = int((~cells[int(cells.int().argmax()) :]).sum())
    line = f"redrawing {redrawn} of {len(cells)} cells"
    if kept_later:
        line += f"; {kept_later} kept cells come after the first redrawn one and do not influence all of them"
    return line
