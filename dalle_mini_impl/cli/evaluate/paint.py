"""`dalle evaluate paint`: what painting gains, by a second scorer and the judges."""

import dataclasses
import time
from functools import partial
from typing import Any

import click

from dalle_mini_impl.cli.evaluate.common import heading, load_context, reference_options
from dalle_mini_impl.cli.options import Count, FiniteFloat, candidates_option, echo_text, examples, write_json_file


@click.command(epilog=examples("dalle evaluate paint emoji --second-scorer runs/other/model --prompts 5 --steps 50"))
@reference_options()
@click.option("--scorer", metavar="NAME", help="Scorer that guides.  [default: MODEL's]")
@click.option("--second-scorer", required=True, metavar="NAME", help="Scorer that only measures.")
@click.option("--prompts", default=20, show_default=True, type=Count(), help="Held-out prompts.")
@click.option("--steps", default=200, show_default=True, type=Count(0), help="Steps for each picture.")
@click.option(
    "--init-weight",
    type=FiniteFloat(),
    default=1.0,
    show_default=True,
    help="How strongly to stay near the sampled picture.",
)
@click.option("--latents", default=64, show_default=True, type=Count(), help="Random latents per prompt.")
@candidates_option(16, "Pictures per prompt.")
def paint(model: str, json_file: str | None, **options: Any) -> None:
    """Measure what painting gains for held-out prompts.

    One scorer guides the painting. A second one, for example trained from another seed, and the judges measure random
    latents, a picture painted from one, the best sampled picture, and one painted on from that. Scorers are named as
    for dalle classify. Needs the extra judge.
    """
    from dalle_mini_impl.evaluate.intervals import format_share
    from dalle_mini_impl.evaluate.paint import PaintEvaluation, measure_painting, table_cells, win_shares
    from dalle_mini_impl.painting.painter import PaintSettings
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.tables import markdown_table

    start = time.perf_counter()
    echo = partial(echo_text, json_file=json_file)
    settings = PaintSettings(steps=options["steps"], init_weight=options["init_weight"])
    names = {"guide": options["scorer"] or model, "second": options["second_scorer"]}
    context = load_context(model, {**options, "pairs": options["prompts"], "sweep_pairs": 1})
    device = str(context.dalle.transformer.device)
    guide = Scorer.from_pretrained(names["guide"], device)
    second = Scorer.from_pretrained(names["second"], device)
    echo(f"{heading(context)}\nguide {names['guide']}, second {names['second']}")
    groups = measure_painting(context, PaintEvaluation(guide, second, settings, options["latents"]))
    echo(markdown_table([table_cells(group) for group in groups]))
    wins = win_shares(groups)
    for name, share in wins.items():
        echo(f"{name} by the second scorer: {format_share(share)} of prompts")
    figures = {
        **context.dalle.source,
        **names,
        "data": options["data"],
        "settings": dataclasses.asdict(context.settings),
        "paint": dataclasses.asdict(settings),
        "latents": options["latents"],
        "groups": [group.as_json() for group in groups],
        "wins": {name: dataclasses.asdict(share) for name, share in wins.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json_file(json_file, figures)
