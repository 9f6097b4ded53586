"""Options that several commands share, so that the same thing has the same name and help text everywhere."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dalle_mini_impl.util.files import write_json

F = TypeVar("F", bound=Callable[..., Any])

STANDARD_OUTPUT = "-"
"""File name that means standard output, as in other command-line programs."""


def json_option(help: str = "Also write the results as JSON; - is standard output.") -> Callable[[F], F]:
    """`--json FILE`, passed on as `json_file`; `--json` at the end of a command line is `--json -`."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, allow_dash=True),
        is_flag=False,
        flag_value=STANDARD_OUTPUT,
        metavar="FILE",
        help=help,
    )


def device_option(help: str = "auto, cpu, cuda or mps.") -> Callable[[F], F]:
    """`--device NAME`, `auto` unless given; `util.devices.choose_device` reads it."""
    return click.option("--device", default="auto", show_default=True, metavar="NAME", help=help)


def keep_option(default: int, help: str) -> Callable[[F], F]:
    """`--keep N`, `-k N`: how many results to keep."""
    return click.option("--keep", "-k", type=click.IntRange(1), default=default, show_default=True, help=help)


def split_list(text: str) -> tuple[str, ...]:
    """Parts of a comma-separated list, without the spaces around them and without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def echo_text(text: object, json_file: str | None) -> None:
    """Print a line for a human reader: to standard error where standard output is to hold JSON and nothing else."""
    click.echo(text, err=json_file == STANDARD_OUTPUT)


def write_json_file(json_file: str | None, values: Any) -> None:
    """Write the value of `--json`: to a file, whose path is printed, or to standard output; None writes nothing.

    Raises:
        UserError: the file cannot be written.
    """
    if json_file == STANDARD_OUTPUT:
        click.echo(json.dumps(values, ensure_ascii=False, indent=1))
    elif json_file is not None:
        click.echo(write_json(json_file, values))
