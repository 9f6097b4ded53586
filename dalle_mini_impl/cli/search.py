"""`dalle search`: find pictures by texts and pictures."""

import os
import sys
from pathlib import Path

import click

from dalle_mini_impl.cli.options import (
    STANDARD_OUTPUT,
    FiniteFloat,
    device_option,
    examples,
    json_option,
    keep_option,
    scorer_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE
from dalle_mini_impl.util.text import escape_controls


@click.command(
    epilog=examples(
        'dalle search photos "a red heart"',
        "dalle search photos photo.jpg --keep 20 --sheet found.png",
        'dalle search photos cat + photo.jpg:0.5 - "grass"',
    )
)
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1, required=True, metavar="QUERY…")
@keep_option(10, "Most pictures to find.")
@click.option("--threshold", type=FiniteFloat(), default=-1.0, help="Least score of a hit, a cosine.  [default: none]")
@click.option("--sheet", "sheet_file", type=PICTURE_FILE, help="Sheet of the pictures found.")
@scorer_option("The scorer that made the index.  [default: the one it names, if included]", default=None)
@json_option("Write the hits as JSON to FILE; - is standard output.")
@device_option()
def search(
    index: Path,
    query: tuple[str, ...],
    keep: int,
    threshold: float,
    sheet_file: Path | None,
    scorer: str | None,
    json_file: str | None,
    device: str,
) -> None:
    """Find pictures by texts and pictures.

    INDEX is the folder of an index, or a folder of pictures with an index in it. A query is a text, a picture, or
    several of them with + and - between them and weights after a colon.

    Prints score, path and the paths of files with equal content, separated by tabs.
    """
    from dalle_mini_impl.search.index import ImageIndex, hits_sheet
    from dalle_mini_impl.search.query import parse_query
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.save_picture import save_picture

    terms = parse_query(query)
    image_index = ImageIndex.open(index, scorer or "", choose_device(device))
    hits = image_index.search(terms, keep, threshold)
    if json_file != STANDARD_OUTPUT:
        for hit in hits:
            # Bytes, because file names may not be valid UTF-8.
            paths = [one_column(str(path)) for path in (hit.path, *hit.copies)]
            click.echo(os.fsencode("\t".join([f"{hit.score:.4f}", *paths])))
    entries = [
        {"score": hit.score, "path": str(hit.path), "copies": [str(path) for path in hit.copies]} for hit in hits
    ]
    write_json_file(json_file, entries)
    if not hits:
        click.echo(f"none of {len(image_index)} pictures scores {threshold} or more", err=True)
    elif sheet_file:
        click.echo(str(save_picture(hits_sheet(hits), sheet_file)), err=True)


def one_column(path: str) -> str:
    r"""A path without the separators of the output, which are shown as `\n` and `\t`.

    On a terminal, characters that steer it are shown as escapes too.
    """
    path = path.replace("\n", "\\n").replace("\t", "\\t")
    return escape_controls(path) if sys.stdout.isatty() else path
