"""`dalle evaluate scorer`: how well a scorer finds pictures by name, and names by picture."""

import dataclasses
import warnings
from typing import Any

import click

from dalle_mini_impl.cli.evaluate.common import names, write_figures


@click.command()
@click.argument("model", default="emoji")
@click.option("--data", default="data/emoji-store", show_default=True, help="Store of decoded pictures.")
@click.option("--split", type=click.Choice(["validation", "train"]), default="validation", show_default=True)
@click.option("--languages", default="", help="Comma-separated.  [default: all]")
@click.option("--skip-kinds", default="flag,person-variant", show_default=True, help="Kinds it was not trained on.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False), help="Also draw recalls as bars here.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def scorer(model: str, data: str, split: str, **options: Any) -> None:
    """Measure how well the scorer of MODEL matches held-out pictures and their names, in each language.

    Recall@k is the share of names whose picture, or another of the same concept, is among the k best, and the reverse;
    zero shot is the share of pictures whose concept has the best name of all.
    """
    from dalle_mini_impl.config.data import DataConfig
    from dalle_mini_impl.data.picture_store import open_store
    from dalle_mini_impl.evaluate import scorer as measure
    from dalle_mini_impl.evaluate.intervals import markdown
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.devices import choose_device

    languages, skipped = names(options["languages"]), names(options["skip_kinds"])
    store = open_store(DataConfig(store=data, skip_kinds=skipped), split)
    judge = Scorer.from_pretrained(model, choose_device(options["device"]))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        reports = measure.evaluate_scorer(judge, store, languages)
    if warned:
        click.echo(f"warning: {warned[0].message}; {len(warned) - 1} more such warnings", err=True)
    click.echo(markdown([measure.figures(report) for report in reports]))
    if options["plot_file"]:
        click.echo(measure.plot(reports, options["plot_file"]))
    facts = {
        "model": model,
        "data": data,
        "split": split,
        "skip_kinds": skipped,
        "languages": [dataclasses.asdict(report) for report in reports],
    }
    write_figures(options["json_file"], facts)
