"""`dalle search`: finds pictures by texts and pictures."""

import json
import os
import warnings
from pathlib import Path

import click


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1, required=True)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Most pictures to find.")
@click.option("--threshold", default=-1.0, help="Least score, a cosine.  [default: none]")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path), help="Also show the pictures in this PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of lines.")
@click.option("--scorer", default="", help="Where the index's scorer lies by now.  [default: where it was]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def search(
    index: Path,
    query: tuple[str, ...],
    top: int,
    threshold: float,
    sheet_file: Path | None,
    as_json: bool,
    scorer: str,
    device: str,
) -> None:
    """Find the pictures that fit a query best, among those of an INDEX or of a folder with an index inside.

    \b
    dalle search photos "a red heart"                    by text
    dalle search photos photo.jpg                        by picture
    dalle search photos cat + photo.jpg:0.5 - "grass"    by several, with weights, and away from some

    Prints score, path and, behind it, files with the same content, separated by tabs.
    """
    from dalle_mini_impl.search.index import ImageIndex, sheet
    from dalle_mini_impl.search.query import parse_query
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.images import save_png

    warnings.showwarning = lambda message, *rest: click.echo(f"warning: {message}", err=True)
    terms = parse_query(query)
    image_index = ImageIndex.open(index, scorer, choose_device(device))
    hits = image_index.search(terms, top, threshold)
    if as_json:
        # Names may hold bytes that are no text: escaped, they come through.
        click.echo(
            json.dumps(
                [
                    {"score": hit.score, "path": str(hit.path), "copies": [str(path) for path in hit.copies]}
                    for hit in hits
                ]
            )
        )
    else:
        for hit in hits:
            click.echo(os.fsencode("\t".join([f"{hit.score:.4f}", *map(str, [hit.path, *hit.copies])])))
    if not hits:
        click.echo(f"none of {len(image_index)} pictures scores {threshold} or more", err=True)
    elif sheet_file:
        click.echo(str(save_png(sheet(hits), sheet_file)), err=True)
