"""`dalle evaluate zero-shot`: accuracy of a scorer on a folder with one subfolder of pictures per class."""

from functools import partial
from pathlib import Path

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES
from dalle_mini_impl.cli.options import (
    device_option,
    echo_text,
    examples,
    json_option,
    scorer_option,
    templates_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE


@click.command(
    "zero-shot",
    epilog=examples(
        "dalle evaluate zero-shot my_classes",
        "dalle evaluate zero-shot my_classes --template 'a picture of {}' --confusion confusion.png",
    ),
)
@click.argument("folder", type=click.Path())
@scorer_option()
@templates_option()
@device_option()
@click.option(
    "--confusion",
    type=PICTURE_FILE,
    default="confusion.png",
    show_default=True,
    help="Picture of the confusion matrix.",
)
@json_option(FIGURES)
def zero_shot(
    folder: str,
    scorer: str,
    templates: tuple[str, ...],
    device: str,
    confusion: Path,
    json_file: str | None,
) -> None:
    """Measure how often a scorer finds the class of the pictures in FOLDER.

    Each folder in FOLDER is a class, its name the label, in any language that the scorer knows.
    """
    from tqdm import tqdm

    from dalle_mini_impl.evaluate.zero_shot import (
        accuracy_table,
        as_json,
        confusion_picture,
        find_classes,
        measure_zero_shot,
    )
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.save_picture import save_picture

    echo = partial(echo_text, json_file=json_file)
    classes = find_classes(folder)
    count = sum(map(len, classes.values()))
    click.echo(f"classifying {count} pictures of {len(classes)} classes in {folder} with {scorer}", err=True)
    loaded = Scorer.from_pretrained(scorer, choose_device(device))
    with tqdm(total=count, unit=" pictures", delay=2, leave=False) as bar:
        result = measure_zero_shot(loaded, classes, templates, bar.update)
    for reason in result.skipped:
        click.echo(f"skipped: {reason}", err=True)
    echo(accuracy_table(result))
    settings = {"scorer": scorer, "folder": folder, "templates": templates}
    write_json_file(json_file, {**settings, **as_json(result)})
    echo(save_picture(confusion_picture(result), confusion))
