"""`dalle classify`: which of some labels fits a picture best."""

import csv
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.scorer.scorer import Scorer

Answer = tuple[Path, list[tuple[str, float]]]
"""A picture, and its likeliest labels with their probabilities."""
CHUNK = 64


def scorer_options(command: Any) -> Any:
    """Give a command the options of everything that compares pictures with labels."""
    for option in (
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or mps."),
        click.option(
            "--template",
            "templates",
            multiple=True,
            default=("{}",),
            show_default=True,
            metavar="TEXT",
            help="Text with {} for the label, as in 'a picture of {}'; several are averaged.",
        ),
        click.option(
            "--scorer",
            "--model",
            "scorer",
            default="emoji",
            show_default=True,
            metavar="NAME",
            help="A shipped name, a checkpoint folder, hf:FOLDER-OR-NAME or open_clip:MODEL:PRETRAINED.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@click.option("--labels", multiple=True, metavar="A,B,…", help="Labels, comma-separated; may be repeated.")
@click.option("--labels-file", type=click.Path(path_type=Path), help="Text file with one label a line.")
@scorer_options
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Labels per picture.")
@click.option("--json", "form", flag_value="json", help="Print one JSON list instead of tables.")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values: image,label,probability.")
def classify(
    images: tuple[Path, ...],
    labels: tuple[str, ...],
    labels_file: Path | None,
    scorer: str,
    templates: tuple[str, ...],
    device: str,
    top: int,
    form: str | None,
) -> None:
    """Say which of the labels, in any language, fits each IMAGE, likeliest first.

    Probabilities assume that exactly one label fits, so give at least two. Scorers that judge each label on its
    own (SigLIP) may say that several fit, or none.
    """
    chosen = read_labels(labels, labels_file)
    warnings.showwarning = lambda message, *rest: click.echo(f"warning: {message}", err=True)

    from dalle_mini_impl.scorer.scorer import Scorer

    click.echo(f"classifying {len(images)} pictures among {len(chosen)} labels with {scorer}", err=True)
    answers = answer(Scorer.from_pretrained(scorer, device), images, chosen, templates, top)
    {"json": print_json, "csv": print_csv, None: print_tables}[form](answers)


def answer(
    scorer: "Scorer", images: tuple[Path, ...], labels: list[str], templates: tuple[str, ...], top: int
) -> Iterator[Answer]:
    """The likeliest labels of each picture; equally likely ones keep the given order.

    Raises:
        UserError: a picture is unreadable, a template has no `{}`, or one label came to be compared with itself.
    """
    from dalle_mini_impl.util.images import open_picture

    if len(labels) == 1 and scorer.preprocess.activation == "softmax":
        raise UserError(f"the one label {labels[0]!r} came, which every picture would get; give two or more")
    label_embed = scorer.embed_labels(labels, templates)
    for start in range(0, len(images), CHUNK):
        paths = images[start : start + CHUNK]
        image_embed = scorer.embed_images([open_picture(path) for path in paths])
        for path, row in zip(paths, scorer.probabilities(image_embed, label_embed).tolist(), strict=True):
            yield path, sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])[:top]


def print_tables(answers: Iterator[Answer]) -> None:
    """Each picture's labels under its name."""
    for path, best in answers:
        click.echo(path)
        for label, probability in best:
            click.echo(f"  {probability:6.1%}  {label}")


def print_json(answers: Iterator[Answer]) -> None:
    """One list for a program to read."""
    entries = [
        {"image": str(path), "labels": [{"label": label, "probability": chance} for label, chance in best]}
        for path, best in answers
    ]
    click.echo(json.dumps(entries, ensure_ascii=False, indent=2))


def print_csv(answers: Iterator[Answer]) -> None:
    """A row for each picture and label."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "label", "probability"))
    for path, best in answers:
        writer.writerows((path, label, probability) for label, probability in best)


def read_labels(labels: tuple[str, ...], labels_file: Path | None) -> list[str]:
    """All labels, each once, in the order given.

    Args:
        labels: values of `--labels`, each a comma-separated list.
        labels_file: a text file with one label a line, commas and all.

    Raises:
        UserError: the file cannot be read, or there is no label at all.
    """
    found = [label for value in labels for label in value.split(",")]
    if labels_file is not None:
        try:
            found += labels_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read labels {labels_file} ({error}); give a UTF-8 file") from error
    chosen = list(dict.fromkeys(label.strip() for label in found if label.strip()))
    if not chosen:
        raise UserError("no label came; give some with --labels 'a cat,a dog', or a file with one a line")
    return chosen
