"""`dalle write`: captions sampled from the transformer, without a picture."""

from typing import Any

import click

from dalle_mini_impl.cli.options import candidates_option, echo_text, examples, keep_option, write_json_file
from dalle_mini_impl.cli.sampling_options import check_keep, complete_text_arguments, text_sampling_options


@click.command(epilog=examples('dalle write "a red" -n 64 -k 5'))
@click.argument("beginning", default="")
@candidates_option(32, "Captions to sample.")
@keep_option(10, "Likeliest captions to keep.")
@text_sampling_options
def write(beginning: str, keep: int, json_file: str | None, **options: Any) -> None:
    """Sample captions from the transformer.

    They begin with BEGINNING and are listed likeliest first, with their log-probability in nats, each different one
    once.
    """
    check_keep(keep, options["candidates"])

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.text import printable

    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    captions = dalle.complete_text(beginning, keep=keep, **complete_text_arguments(options))
    for text, nats in captions:
        echo_text(f"{nats:8.2f}  {printable(text)}", json_file)
    write_json_file(json_file, [{"text": text, "nats": nats} for text, nats in captions])
