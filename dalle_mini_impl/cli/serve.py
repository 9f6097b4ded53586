"""`dalle serve`: the model as a service that OpenAI's clients speak to."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.cli.options import (
    Count,
    FiniteFloat,
    add_options,
    device_option,
    examples,
    model_option,
    precision_option,
    scorer_option,
)
from dalle_mini_impl.cli.sampling_options import announce_loading, use_scorer
from dalle_mini_impl.config.serving import ServiceLimits
from dalle_mini_impl.util.errors import need_extra

LIMITS = ServiceLimits()
MAX_SECONDS = 10_000_000
"""Longest time that an option takes."""


def _limit(name: str, kind: click.ParamType, help: str, metavar: str = "N") -> Any:
    """The option of a field of `ServiceLimits`."""
    default = getattr(LIMITS, name)
    option = f"--{name.replace('_', '-')}"
    return click.option(option, type=kind, default=default, show_default=True, metavar=metavar, help=help)


limit_options = add_options(
    [
        _limit("max_candidates", Count(), "Most candidates of a request."),
        _limit("max_prompt", Count(), "Most characters of a prompt."),
        _limit("max_upload", FiniteFloat(0.001, 2**20), "Most megabytes of a request, pictures included.", "MB"),
        _limit("max_pixels", Count(), "Most pixels of an uploaded picture, and of an answer."),
        _limit("queue", Count(), "Most requests at a time; further ones are answered 429."),
        _limit("upload_seconds", FiniteFloat(0.001, MAX_SECONDS), "Longest time that a client may send.", "S"),
        _limit("url_seconds", FiniteFloat(0.001, MAX_SECONDS), "How long pictures at addresses are kept.", "S"),
        _limit("grace", FiniteFloat(0, MAX_SECONDS), "Seconds after which SIGTERM ends unfinished work.", "S"),
    ]
)


@click.command(
    epilog=examples(
        "dalle serve",
        "dalle serve --model runs/pictures/model --name pictures --port 9000",
        "dalle serve --host 0.0.0.0 --keys-file keys.txt",
    )
)
@model_option()
@click.option("--name", "names", multiple=True, metavar="NAME", help="Model names to answer to.  [default: --model]")
@precision_option()
@scorer_option("Rank by this scorer.  [default: the model's]", default=None)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="Address to bind to.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="0 is any free one."
)
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keys that clients need, one per line; also $DALLE_API_KEYS, with commas.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where pictures at addresses are kept.  [default: a temporary folder]",
)
@click.option("--url", default="", metavar="URL", help="Address of the service as clients see it, behind a proxy.")
@click.option("--chunk", type=Count(), metavar="N", help="Candidates to sample at a time.  [default: as dalle sample]")
@limit_options
@device_option()
def serve(
    model: str,
    names: tuple[str, ...],
    precision: str,
    scorer: str | None,
    host: str,
    port: int,
    keys_file: Path | None,
    folder: Path | None,
    url: str,
    chunk: int | None,
    device: str,
    **limits: Any,
) -> None:
    """Draw over HTTP, for clients of OpenAI's images API.

    Requests that arrive together are drawn together. Other machines can reach the service only with --host, which needs
    keys. SIGTERM and Ctrl-C end it once it has finished what it began.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise need_extra("fastapi", "serve", "uvicorn", "python-multipart", "prometheus-client") from error

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.serve.keys import read_keys
    from dalle_mini_impl.serve.server import Serving, run_service

    def load() -> DalleMini:
        announce_loading(model, "to serve it")
        dalle = DalleMini.from_pretrained(model, device, precision)
        use_scorer(dalle, scorer)
        return dalle

    serving = Serving(host=host, port=port, names=names or (model,), folder=folder, url=url, chunk=chunk)
    run_service(
        load,
        serving,
        read_keys(keys_file),
        dataclasses.replace(LIMITS, **limits),
        on_start=lambda address: click.echo(f"serving {model} at {address}/v1"),
    )
