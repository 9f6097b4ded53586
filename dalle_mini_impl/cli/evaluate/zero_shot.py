"""`dalle evaluate zero-shot`: how well a scorer tells the classes of a folder of folders."""

from typing import Any

import click

from dalle_mini_impl.cli.evaluate.common import write_figures
from dalle_mini_impl.cli.options import device_option, scorer_option, templates_option


@click.command("zero-shot")
@click.argument("folder", type=click.Path())
@scorer_option()
@templates_option()
@device_option()
@click.option(
    "--confusion",
    type=click.Path(dir_okay=False),
    default="confusion.png",
    show_default=True,
    help="Picture of what was taken for what.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here.")
def zero_shot(folder: str, scorer: str, templates: tuple[str, ...], device: str, **options: Any) -> None:
    """Measure how often a scorer finds the class of the pictures in FOLDER.

    Each folder in FOLDER is a class, its name the label, in any language.
    """
    from tqdm import tqdm

    from dalle_mini_impl.evaluate import zero_shot as measure
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.images import save_png

    classes = measure.find_classes(folder)
    count = sum(map(len, classes.values()))
    click.echo(f"classifying {count} pictures of {len(classes)} classes in {folder} with {scorer}", err=True)
    with tqdm(total=count, unit=" pictures", delay=2, leave=False) as bar:
        result = measure.zero_shot(
            Scorer.from_pretrained(scorer, choose_device(device)), classes, templates, bar.update
        )
    for reason in result.skipped:
        click.echo(f"skipped: {reason}", err=True)
    click.echo(measure.table(result))
    settings = {"scorer": scorer, "folder": folder, "templates": templates}
    write_figures(options["json_file"], {**settings, **measure.facts(result)})
    click.echo(save_png(measure.confusion_picture(result), options["confusion"]))
