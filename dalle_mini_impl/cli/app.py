"""`dalle app`: a page to draw, complete, paint, search and learn with."""

import threading
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.cli.options import device_option, examples, model_option, precision_option, scorer_option


@click.command(
    epilog=examples(
        "dalle app",
        "dalle app --model runs/pictures/model --port 8000",
        "dalle app --host 0.0.0.0 --password 'four random words'",
    )
)
@model_option()
@precision_option()
@scorer_option("Rank, paint, search and classify by this scorer.  [default: the model's]", default=None)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that dalle index made searchable, for the tab Search and classify.",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(1, 65535), metavar="N", help="Port to listen at.  [default: the first free from 7860]"
)
@click.option(
    "--password",
    envvar="DALLE_APP_PASSWORD",
    metavar="TEXT",
    help="Ask visitors for it; required if other machines can reach --host.  [also: DALLE_APP_PASSWORD]",
)
@device_option()
def app(**options: Any) -> None:
    """Serve a page to draw, complete, paint and search (extra: app).

    The page is for this machine alone unless --host says otherwise, and asks no other machine for anything. Ctrl-C ends
    it, and removes what visitors have uploaded.
    """
    from dalle_mini_impl.app.server import PageSettings, serve

    settings = PageSettings(**options)
    with serve(settings) as address:
        click.echo(f"the page is at {address} (Ctrl-C ends it)")
        threading.Event().wait()
