"""`dalle complete`: parts of a picture redrawn, or pictures like it."""

import warnings
from typing import Any

import click

from dalle_mini_impl.cli.sampling_options import check, generate_arguments, ids_to_draw, sampling_options, write
from dalle_mini_impl.util.errors import UserError

REGIONS = ("rows", "box", "mask", "panel", "variations")


@click.command()
@click.argument("image", type=click.Path())
@click.argument("prompt", default="")
@click.option("--keep-rows", "rows", type=int, help="Keep this many rows of the token grid; redraw all below.")
@click.option("--box", metavar="LEFT,TOP,RIGHT,BOTTOM", help="Redraw this rectangle, in pixels of IMAGE.")
@click.option("--mask", type=click.Path(), help="Redraw what is white in this picture, as large as IMAGE.")
@click.option("--panel", is_flag=True, help="Squeeze IMAGE into the upper half and draw the lower one.")
@click.option("--variations", is_flag=True, help="Redraw places all over IMAGE, others for each candidate.")
@click.option("--strength", default=0.5, show_default=True, help="With --variations: share of places redrawn.")
@click.option("--paste/--no-paste", default=True, show_default=True, help="Put original pixels back where kept.")
@click.option("--model", default="emoji", show_default=True, help="Shipped name, checkpoint folder or hf:USER/REPO.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or int8.")
@sampling_options
def complete(image: str, prompt: str, **options: Any) -> None:
    """Redraw parts of IMAGE so that it shows PROMPT; the grid begins with IMAGE as the model sees it.

    What is drawn sees only what lies above it or on its left. Kept parts further down have a say in the ranking
    alone, so draw many candidates for --box and --mask.
    """
    named = [name for name in REGIONS if options[name] is not None and options[name] is not False]
    given = [f"--{name.replace('rows', 'keep-rows')}" for name in named]
    if len(given) != 1:
        raise UserError(
            f"{' and '.join(given) or 'nothing'} came to say what to redraw; "
            f"give one of --keep-rows, --box, --mask, --panel and --variations"
        )
    check(options)
    box = read_box(options["box"])
    text = prompt.encode("utf-8", "replace").decode()  # bytes that are no UTF-8 arrive as lone surrogates

    from tqdm import tqdm

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import open_picture

    warnings.showwarning = lambda message, *rest: click.echo(f"warning: {message}", err=True)
    picture = open_picture(image)
    mask = open_picture(options["mask"]) if options["mask"] else None
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    with tqdm(
        total=ids_to_draw(generate_arguments(options), dalle.stream.image_length),
        unit=" ids",
        disable=None,
        leave=False,
    ) as bar:
        how = {**generate_arguments(options), "chunk": options["chunk"], "progress": bar.update}
        if options["variations"]:
            result = dalle.variations(picture, text, strength=options["strength"], **how)
        else:
            region = {"rows": options["rows"], "box": box, "mask": mask, "panel": options["panel"]}
            result = dalle.complete(picture, text, paste=options["paste"], **region, **how)
    if not options["variations"]:
        click.echo(what_is_seen(result.settings["canvas"]["redrawn"]), err=True)
    layout = {"columns": options["columns"], "scores": options["scores"]}
    write([result], result.grid(**layout), {**result.metadata(), "layout": layout}, options)


def read_box(text: str | None) -> tuple[int, ...] | None:
    """Four whole numbers of the command line.

    Raises:
        UserError: it is anything else.
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--box {text} was given, expected four whole numbers: LEFT,TOP,RIGHT,BOTTOM") from error
    return left, top, right, bottom


def what_is_seen(redrawn: list[str]) -> str:
    """One line on how much is drawn, and how much of what is kept that cannot see."""
    places = "".join(redrawn)
    unseen = places.lstrip(".").count(".")
    line = f"redrew {places.count('#')} of {len(places)} places"
    return line + f"; {unseen} kept ones come after the first of them, and not all drawn ones saw them" * (unseen > 0)
