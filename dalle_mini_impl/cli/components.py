"""`dalle components`: what is left of a picture's embedding with a few principal components only."""

from typing import Any

import click

from dalle_mini_impl.cli.mix import check_animation, strip_options, write_strip
from dalle_mini_impl.cli.options import CommaSeparated, Count, examples, out_option, seed_option
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS
from dalle_mini_impl.util.text import without_surrogates


@click.command(
    epilog=examples(
        "dalle components cat.png pictures/*.png -m runs/mine",
        "dalle components cat.png pictures/*.png --components 5,20,80 --frames cat.gif -m runs/mine",
    )
)
@click.argument("picture", type=click.Path())
@click.argument("others", nargs=-1, required=True, type=click.Path(), metavar="OTHERS…")
@click.option(
    "--components",
    type=CommaSeparated(Count(0), minimum=1),
    metavar="A,B,…",
    help="How many components to keep, for each picture of the strip.  [default: 1,2,4,… and all]",
)
@seed_option("Of the random numbers that all pictures are drawn from.")
@out_option("File for the strip of pictures: .png, .jpg or .webp.", "components.png", endings=(*PICTURE_FORMATS,))
@strip_options
def components(picture: str, others: tuple[str, ...], components: tuple[int, ...] | None, **options: Any) -> None:
    """Draw what few components of a picture's embedding say (DALL-E 2).

    The principal components are those of the embeddings of OTHERS, most important first: pictures of all kinds, more
    than the components that are kept. All pictures of the strip are drawn from the same random numbers.
    dalle sample --from draws it again.
    """
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.pipeline.manipulations import component_views
    from dalle_mini_impl.util.images import open_picture

    image, images = open_picture(picture), map(open_picture, others)
    check_animation(options["frames"])
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    chosen = {name: options[name] for name in ("seed", "guidance", "decoder")}
    prompt = without_surrogates(options["prompt"])
    write_strip(component_views(dalle, image, images, components, prompt, **chosen), options)
