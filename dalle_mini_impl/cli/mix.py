"""`dalle mix`: pictures on the way from one picture or text to another."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.options import (
    Count,
    FiniteFloat,
    add_options,
    device_option,
    examples,
    model_option,
    out_option,
    precision_option,
    seed_option,
)
from dalle_mini_impl.cli.outputs import OutputFile
from dalle_mini_impl.config.sampling import DECODERS
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS
from dalle_mini_impl.util.text import without_surrogates

if TYPE_CHECKING:
    from PIL import Image

    from dalle_mini_impl.pipeline.results import Result

strip_options = add_options(
    [
        click.option("--prompt", default="", metavar="TEXT", help="Caption of all pictures."),
        click.option(
            "--guidance", type=FiniteFloat(), help="How much to follow the embedding; 1 is off.  [default: the model's]"
        ),
        click.option(
            "--decoder",
            type=click.Choice(DECODERS),
            help="What draws the pictures: the transformer, or a U-Net (DALL-E 2).  [default: the model's]",
        ),
        click.option(
            "--frames",
            type=OutputFile(".gif", ".mp4"),
            metavar="FILE",
            help="Write the pictures as an animation to this .gif or .mp4.",
        ),
        click.option("--zoom", type=click.IntRange(1, 16), default=1, metavar="N", help="Make frames N times larger."),
        model_option(),
        precision_option(),
        device_option(),
    ]
)
"""Options of the commands that draw a strip of pictures."""


@click.command(
    epilog=examples(
        "dalle mix cat.png dog.png --steps 8 --frames mix.gif -m runs/mine",
        'dalle mix photo.jpg "a red heart" -m runs/mine           # a file is a picture, anything else a text',
    )
)
@click.argument("first")
@click.argument("second")
@click.option("--steps", type=Count(2), default=8, show_default=True, metavar="N", help="Pictures, both ends included.")
@seed_option("Of the random numbers that all pictures are drawn from.")
@out_option("File for the strip of pictures: .png, .jpg or .webp.", "mix.png", endings=(*PICTURE_FORMATS,))
@strip_options
def mix(first: str, second: str, **options: Any) -> None:
    """Draw pictures between two pictures or texts (DALL-E 2).

    Each is drawn of an embedding between those of FIRST and SECOND, and all from the same random numbers. A text's
    embedding is drawn by the model's prior, if it has one. dalle sample --from draws the strip again.
    """
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.pipeline.manipulations import mix as draw

    start, end = (picture_or_text(one) for one in (first, second))
    check_animation(options["frames"])
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    chosen = {name: options[name] for name in ("steps", "seed", "guidance", "decoder")}
    write_strip(draw(dalle, start, end, without_surrogates(options["prompt"]), **chosen), options)


def write_strip(results: "list[Result]", options: dict[str, Any]) -> None:
    """Write results of one picture each as a strip and, with --frames, as an animation, and print their paths.

    Args:
        results: in their order.
        options: `out`, `frames` and `zoom`.
    """
    from dalle_mini_impl.cli.sample import grid_metadata
    from dalle_mini_impl.pipeline.results import grid, picture_text
    from dalle_mini_impl.util.save_picture import save_picture

    layout = {"columns": len(results), "scores": False}
    metadata = {**grid_metadata(results, options["zoom"]), "layout": layout}
    strip = grid(results, len(results), zoom=options["zoom"])
    click.echo(save_picture(strip, options["out"], metadata, picture_text(results)))
    write_animation([result[0].image for result in results], options["frames"], options["zoom"])


def picture_or_text(end: str) -> "Image.Image | str":
    """The picture in a file of this name, or the text itself where there is no such file.

    Raises:
        UserError: the file is no picture, or the text ends like the name of one.
    """
    from dalle_mini_impl.util.images import open_picture
    from dalle_mini_impl.util.read_files import is_file

    is_picture = is_file(end) or end.lower().endswith((*PICTURE_FORMATS,))
    return open_picture(Path(end)) if is_picture else without_surrogates(end)


def check_animation(path: Path | None) -> None:
    """Refuse an animation that cannot be written, before anything is drawn.

    Raises:
        UserError: as `painting.frames.check_frames`.
    """
    if path is not None:
        from dalle_mini_impl.painting.frames import check_frames

        check_frames(path)


def write_animation(images: "list[Image.Image]", path: Path | None, zoom: int) -> None:
    """Write pictures as an animation, if a file for it is given, and print its path."""
    if path is not None:
        from dalle_mini_impl.painting.frames import save_frames
        from dalle_mini_impl.util.images import enlarge

        click.echo(save_frames(enlarge([image.convert("RGB") for image in images], zoom), path))
