"""`dalle classify`: which of some labels fits a picture best."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dalle_mini_impl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@click.option("--labels", multiple=True, metavar="A,B,…", help="Labels, comma-separated; may be repeated.")
@click.option("--labels-file", type=click.Path(path_type=Path), help="Text file with one label a line.")
@click.option("--model", default="emoji", show_default=True, help="A shipped name or a checkpoint folder.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or mps.")
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Labels per picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of tables.")
def classify(
    images: tuple[Path, ...],
    labels: tuple[str, ...],
    labels_file: Path | None,
    model: str,
    device: str,
    top: int,
    as_json: bool,
) -> None:
    """Say which of the labels fits each IMAGE, likeliest first.

    Probabilities assume that exactly one label fits, so give at least two.
    """
    chosen = read_labels(labels, labels_file)
    pictures = [_open(path) for path in images]

    from dalle_mini_impl.checkpoint import load_scorer

    click.echo(f"classifying {len(pictures)} pictures among {len(chosen)} labels with {model}", err=True)
    rows = load_scorer(model, device).classify(pictures, chosen).tolist()
    results = []
    for path, row in zip(images, rows, strict=True):
        best = sorted(zip(chosen, row, strict=True), key=lambda pair: -pair[1])[:top]
        results.append((path, best))
    if as_json:
        entries = [
            {"image": str(path), "labels": [{"label": label, "probability": p} for label, p in best]}
            for path, best in results
        ]
        click.echo(json.dumps(entries, ensure_ascii=False, indent=2))
        return
    for path, best in results:
        click.echo(path)
        for label, probability in best:
            click.echo(f"  {probability:6.1%}  {label}")


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
            found += labels_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read labels {labels_file} ({error}); give a UTF-8 file") from error
    chosen = list(dict.fromkeys(label.strip() for label in found if label.strip()))
    if not chosen:
        raise UserError("no label came; give some with --labels 'a cat,a dog' or --labels-file")
    return chosen


def _open(path: Path) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture ({error}); give a PNG or JPEG file") from error
