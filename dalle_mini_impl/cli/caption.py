"""`dalle caption`: which captions make a picture likelier."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.cli.classify import read_labels
from dalle_mini_impl.cli.write import generate_arguments, text_sampling_options


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@click.option("--labels", multiple=True, metavar="A,B,…", help="Captions, comma-separated; may be repeated.")
@click.option("--captions", "file", type=click.Path(path_type=Path), help="Text file with one caption a line.")
@click.option("--beginning", default="", help="What sampled captions begin with.")
@click.option("--candidates", default=64, show_default=True, help="Captions sampled where none are given.")
@click.option("--keep", default=5, show_default=True, help="Best captions per picture.")
@click.option("--blind", is_flag=True, help="Judge each place of the picture alone, as id_dropout trains for.")
@click.option("--prior", is_flag=True, help="Prefer captions that are likely in themselves.")
@text_sampling_options
def caption(
    images: tuple[Path, ...], labels: tuple[str, ...], file: Path | None, beginning: str, **options: Any
) -> None:
    """Rank captions by how much likelier they make each IMAGE, in nats over no caption.

    They are given by --labels and --captions; else some are sampled, without a look at the picture, so many are needed.
    """
    given = read_labels(labels, file) if labels or file else None
    warnings.showwarning = lambda message, *rest: click.echo(f"warning: {message}", err=True)

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import open_picture
    from dalle_mini_impl.util.text import printable

    pictures = [open_picture(path) for path in images]
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    if given is None:
        drawn = dalle.complete_text(beginning, keep=options["candidates"], **generate_arguments(options))
        given = [text for text, _ in drawn]
    click.echo(f"ranking {len(given)} captions for {len(images)} pictures", err=True)
    how = {name: options[name] for name in ("keep", "blind", "prior")}
    entries = []
    for path, picture in zip(images, pictures, strict=True):
        found = dalle.caption(picture, given, **how)
        entries.append({"image": str(path), "captions": [dataclasses.asdict(one) for one in found]})
        if not options["as_json"]:
            click.echo(printable(str(path)))
            for one in found:
                click.echo(f"{one.gain:+9.2f}  {printable(one.text)}")
    if options["as_json"]:
        click.echo(json.dumps(entries, ensure_ascii=False, indent=2))
