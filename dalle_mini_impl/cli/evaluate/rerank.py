"""`dalle evaluate rerank`: what keeping the best of N candidates gains and costs."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.cli.evaluate.common import heading, load_context, reference_options
from dalle_mini_impl.cli.options import Count, candidates_option, echo_text, examples, write_json_file
from dalle_mini_impl.cli.outputs import PlotFile


@click.command(epilog=examples("dalle evaluate rerank emoji --sweep-pairs 20 --candidates 16 --plot curve.png"))
@reference_options()
@click.option("--pairs", type=Count(), default=100, show_default=True, help="Pairs left to other figures.")
@click.option("--sweep-pairs", type=Count(), default=80, show_default=True, help="Pairs after those, used.")
@candidates_option(64, "Pictures per prompt.")
@click.option("--plot", "plot_file", type=PlotFile("eval"), help="PNG for the curve (extra: eval).")
def rerank(model: str, json_file: str | None, plot_file: Path | None, **options: Any) -> None:
    """Measure what ranking gains: R-precision of MODEL's best of 1, 2, 4 … candidates by each ranking method.

    Also measures what it costs, seconds for a prompt from text to the best picture, and which clip_weight ranks best.
    Needs the extra judge.
    """
    echo = partial(echo_text, json_file=json_file)
    context = load_context(model, options)
    echo(heading(context))

    from dalle_mini_impl.evaluate.intervals import share_table
    from dalle_mini_impl.evaluate.rerank import accuracy_table, measure_rerank, plot_curve, seconds_table

    points, weights = measure_rerank(context)
    for judge in context.r_precisions:
        echo(f"{judge}\n{accuracy_table(points, judge)}")
    echo(seconds_table(points))
    echo(share_table(weights))
    if plot_file:
        echo(plot_curve(points, plot_file))
    figures = {
        **context.dalle.source,
        "sampling": dataclasses.asdict(context.dalle.sampling),
        "data": options["data"],
        "settings": dataclasses.asdict(context.settings),
        "points": [dataclasses.asdict(point) for point in points],
        "weights": [dataclasses.asdict(row) for row in weights],
    }
    write_json_file(json_file, figures)
