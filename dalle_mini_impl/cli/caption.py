"""`dalle caption`: captions ranked by how much likelier they make a picture."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.cli.options import (
    candidates_option,
    echo_text,
    examples,
    keep_option,
    labels_option,
    read_labels,
    texts_file_option,
    write_json_file,
)
from dalle_mini_impl.cli.sampling_options import complete_text_arguments, text_sampling_options


@click.command(
    epilog=examples(
        'dalle caption photo.png --labels "a cat,a dog,a house"', "dalle caption photo.png --texts-file captions.txt"
    )
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@labels_option("Captions, comma-separated; may be repeated.")
@texts_file_option("Text file with one caption per line.")
@click.option("--beginning", default="", help="What sampled captions begin with.")
@candidates_option(64, "Captions to sample where none are given.")
@keep_option(5, "Best captions to keep per picture.")
@click.option("--blind", is_flag=True, help="Score each image id without the others, as id_dropout trains for.")
@click.option("--prior", is_flag=True, help="Add the log-probability of the caption itself.")
@text_sampling_options
def caption(
    images: tuple[Path, ...],
    labels: tuple[str, ...],
    texts_file: Path | None,
    beginning: str,
    json_file: str | None,
    **options: Any,
) -> None:
    """Rank captions by how likely they make a picture.

    The score of a caption is by how many nats it raises the log-probability of IMAGE over that without a caption.
    Captions are those of --labels and --texts-file; without both, captions are sampled, independently of the picture,
    so sample many.
    """
    captions = read_labels(labels, texts_file) if labels or texts_file else None

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import open_picture
    from dalle_mini_impl.util.text import printable

    for path in images:  # refused now, not after the first ones are ranked; they are decoded one at a time
        open_picture(path)
    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    if captions is None:
        sampled = dalle.complete_text(beginning, keep=options["candidates"], **complete_text_arguments(options))
        captions = [text for text, _ in sampled]
    click.echo(f"ranking {len(captions)} captions for {len(images)} pictures", err=True)
    ranking = {name: options[name] for name in ("keep", "blind", "prior")}
    entries = []
    for path in images:
        ranked = dalle.caption(open_picture(path), captions, **ranking)
        entries.append({"image": str(path), "captions": [dataclasses.asdict(one) for one in ranked]})
        echo_text(printable(str(path)), json_file)
        for one in ranked:
            echo_text(f"{one.gain:+9.2f}  {printable(one.text)}", json_file)
    write_json_file(json_file, entries)
