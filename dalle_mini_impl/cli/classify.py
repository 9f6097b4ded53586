"""`dalle classify`: the labels that fit a picture best, by a scorer."""

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from dalle_mini_impl.cli.options import (
    STANDARD_OUTPUT,
    device_option,
    echo_text,
    examples,
    json_option,
    keep_option,
    labels_option,
    read_labels,
    scorer_option,
    templates_option,
    texts_file_option,
    write_json_file,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from dalle_mini_impl.scorer.scorer import Scorer


class Classified(NamedTuple):
    """A picture and its likeliest labels."""

    path: Path
    labels: list[tuple[str, float]]
    """Each with its probability, likeliest first."""


@click.command(
    epilog=examples(
        'dalle classify *.png --labels "a cat,a dog,a house"',
        "dalle classify photo.jpg --texts-file labels.txt --template 'a picture of {}' -k 3",
    )
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@labels_option("Labels, comma-separated; may be repeated.")
@texts_file_option("Text file with one label per line.")
@scorer_option()
@templates_option()
@device_option()
@keep_option(10, "Likeliest labels to show per picture.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values: image,label,probability.")
@json_option()
def classify(
    images: tuple[Path, ...],
    labels: tuple[str, ...],
    texts_file: Path | None,
    scorer: str,
    templates: tuple[str, ...],
    device: str,
    keep: int,
    as_csv: bool,
    json_file: str | None,
) -> None:
    """Find which labels fit pictures best (zero-shot).

    Labels may be in any language that the scorer knows. Probabilities assume that exactly one label fits, so give at
    least two. A scorer with independent probabilities (SigLIP) may find that several labels fit, or none.

    Pictures that cannot be read are listed and left out; only if none can be read is that an error.
    """
    if as_csv and json_file == STANDARD_OUTPUT:
        raise UserError("expected --csv or --json -, got both for standard output; give --json a file")
    texts = read_labels(labels, texts_file)

    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.devices import choose_device

    click.echo(f"classifying {len(images)} pictures among {len(texts)} labels with {scorer}", err=True)
    skipped: list[str] = []
    classified: Iterable[Classified] = classify_pictures(
        Scorer.from_pretrained(scorer, choose_device(device)), images, texts, templates, keep, skipped
    )
    if json_file is not None:
        classified = list(classified)
    if as_csv:
        print_csv(classified)
    else:
        print_tables(classified, json_file)
    for reason in skipped:
        click.echo(f"skipped: {reason}", err=True)
    if len(skipped) == len(images):
        raise UserError(
            f"expected pictures, got none among the {len(images)} files that can be read; give PNG or JPEG files"
        )
    if json_file is not None:
        entries = [
            {"image": str(path), "labels": [{"label": label, "probability": value} for label, value in best]}
            for path, best in classified
        ]
        write_json_file(json_file, entries, err=as_csv)


def classify_pictures(
    scorer: "Scorer",
    images: tuple[Path, ...],
    labels: list[str],
    templates: tuple[str, ...],
    keep: int,
    skipped: list[str],
) -> Iterator[Classified]:
    """The likeliest labels of each picture; equally likely ones keep the given order.

    Why a picture cannot be used is appended to `skipped`, and the next one is classified.

    Raises:
        UserError: a template has no `{}`, or one label would get the probability 1 always.
    """
    from dalle_mini_impl.scorer.picture_files import embed_picture_files

    if len(labels) == 1 and scorer.preprocess.activation == "softmax":
        raise UserError(f"expected at least two labels, got only {labels[0]!r}, which would fit any picture; add one")
    label_embed = scorer.embed_labels(labels, templates)
    for group in equal_labels(labels, label_embed):
        names = ", ".join(map(repr, group))
        click.echo(printable(f"note: {names} are the same to the scorer, and share their probability"), err=True)
    for batch in embed_picture_files(scorer, images, lambda path: path):
        skipped.extend(printable(f"{picture.item}: {picture.reason}") for picture in batch if picture.reason)
        usable = [(picture.item, picture.embedding) for picture in batch if picture.embedding is not None]
        for path, embedding in usable:
            (row,) = scorer.probabilities(embedding[None], label_embed).tolist()
            yield Classified(path, sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])[:keep])


def equal_labels(labels: list[str], label_embed: "Tensor") -> list[list[str]]:
    """Groups of labels that have the same embedding: a scorer cannot tell them apart."""
    groups: dict[bytes, list[str]] = {}
    for label, row in zip(labels, label_embed, strict=True):
        groups.setdefault(row.numpy().tobytes(), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def print_tables(classified: Iterable[Classified], json_file: str | None) -> None:
    """Print each picture's labels under its name."""
    for path, best in classified:
        echo_text(path, json_file)
        for label, probability in best:
            echo_text(f"  {probability:6.1%}  {label}", json_file)


def print_csv(classified: Iterable[Classified]) -> None:
    """Print a row for each picture and label."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "label", "probability"))
    for path, best in classified:
        writer.writerows((path, label, probability) for label, probability in best)
