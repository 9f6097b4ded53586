"""`dalle vary`: variations of a picture, drawn from the embedding that the scorer has of it."""

from typing import Any

import click

from dalle_mini_impl.cli.options import examples, model_option, precision_option
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
from dalle_mini_impl.util.text import without_surrogates


@click.command(epilog=examples("dalle vary heart.png -m runs/mine -n 32 -k 8 -o variations.png"))
@click.argument("picture", type=click.Path())
@click.argument("prompt", default="")
@model_option()
@precision_option()
@sampling_options
def vary(picture: str, prompt: str, **options: Any) -> None:
    """Draw variations of a picture (DALL-E 2).

    They keep what the scorer sees in PICTURE, and differ in the rest. The model needs positions for an image embedding.
    dalle sample --from draws them again.
    """
    arguments = generate_arguments(options)

    from tqdm import tqdm

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import open_picture

    arguments |= {"prompt": without_surrogates(prompt), "image_embed": open_picture(picture)}
    announce_loading(options["model"], "to draw variations")
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    use_scorer(dalle, options["scorer"])
    check_format(dalle, arguments, options)
    count = progress_total(dalle, arguments)
    with tqdm(total=count, unit="", disable=None, leave=False) as bar:  # None: only on a terminal
        result = generate_shown(dalle, arguments, bar, options)
    layout = {"columns": options["columns"], "scores": options["scores"]}
    zoom = options["zoom"] or 1
    metadata = {**result.metadata(zoom=zoom), "layout": layout}
    write_results([result], result.grid(**layout, zoom=zoom), metadata, options, zoom)
