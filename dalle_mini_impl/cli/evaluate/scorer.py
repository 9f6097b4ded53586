"""`dalle evaluate scorer`: retrieval between held-out pictures and their names, by language."""

import dataclasses
import warnings
from pathlib import Path

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES, data_option, open_data, skip_kinds_option, split_option
from dalle_mini_impl.cli.options import (
    CommaSeparated,
    device_option,
    echo_text,
    examples,
    json_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PlotFile


@click.command(epilog=examples("dalle evaluate scorer emoji --languages en,de --plot recall.png"))
@click.argument("model", default="emoji")
@data_option()
@split_option(("validation", "train"))
@click.option(
    "--languages",
    type=CommaSeparated(),
    default="",
    metavar="A,B",
    help="Languages to measure.  [default: all]",
)
@skip_kinds_option()
@click.option("--plot", "plot_file", type=PlotFile("eval"), help="PNG for bars of recall (extra: eval).")
@json_option(FIGURES)
@device_option()
def scorer(
    model: str,
    data: str,
    split: str,
    languages: tuple[str, ...],
    skip_kinds: tuple[str, ...],
    plot_file: Path | None,
    json_file: str | None,
    device: str,
) -> None:
    """Measure how well the scorer of MODEL matches held-out pictures and their names, in each language.

    Recall@k is the fraction of names whose picture, or another of the same concept, is among the k best, and the
    reverse; zero shot is the fraction of pictures whose concept has the best name of all.
    """
    from dalle_mini_impl.evaluate.scorer import evaluate_scorer, plot_recalls, table_cells
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.tables import markdown_table

    store = open_data(data, split, skip_kinds)
    loaded = Scorer.from_pretrained(model, choose_device(device))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reports = evaluate_scorer(loaded, store, languages)
    if caught:
        click.echo(f"warning: {caught[0].message}; {len(caught) - 1} more such warnings", err=True)
    echo_text(markdown_table([table_cells(report) for report in reports]), json_file)
    if plot_file:
        echo_text(plot_recalls(reports, plot_file), json_file)
    figures = {
        "model": model,
        "data": data,
        "split": split,
        "skip_kinds": skip_kinds,
        "languages": [dataclasses.asdict(report) for report in reports],
    }
    write_json_file(json_file, figures)
