"""`dalle evaluate paint`: what painting gains, by a second scorer and the judges."""

import dataclasses
import time
from typing import Any

import click

from dalle_mini_impl.cli.evaluate.common import evaluation_options, heading, set_up, write_figures


@click.command()
@evaluation_options
@click.option("--scorer", help="Who guides: a name as for dalle classify.  [default: MODEL's]")
@click.option("--second-scorer", required=True, metavar="NAME", help="Who looks on: trained from another seed, say.")
@click.option("--prompts", default=20, show_default=True, type=click.IntRange(1), help="Held-out prompts.")
@click.option("--steps", default=200, show_default=True, type=click.IntRange(0), help="Steps for each picture.")
@click.option("--init-weight", default=1.0, show_default=True, help="How strongly to stay near the sampled picture.")
@click.option("--latents", default=64, show_default=True, type=click.IntRange(1), help="Random latents a prompt.")
@click.option("--candidates", default=16, show_default=True, type=click.IntRange(1), help="Pictures to sample from.")
def paint(model: str, **options: Any) -> None:
    """Measure what painting gains for held-out prompts.

    One scorer guides; what counts is what the second scorer and the judges make of the pictures: random latents, a
    picture painted from one, the best sampled picture, and one painted on from that.
    """
    from dalle_mini_impl.evaluate import paint as measure
    from dalle_mini_impl.evaluate.intervals import cell, markdown
    from dalle_mini_impl.painting.painter import PaintSettings
    from dalle_mini_impl.scorer.scorer import Scorer

    start = time.perf_counter()
    settings = PaintSettings(steps=options["steps"], init_weight=options["init_weight"])
    names = {"guide": options["scorer"] or model, "second": options["second_scorer"]}
    context = set_up(model, {**options, "pairs": options["prompts"], "sweep_pairs": 1, "languages": "", "sweep": False})
    device = str(context.dalle.transformer.device)
    guide, second = (Scorer.from_pretrained(name, device) for name in names.values())
    plan = measure.PaintEvaluation(guide, second, settings, options["latents"])
    click.echo(f"{heading(context)}\nguide {names['guide']}, second {names['second']}")
    groups = measure.measure(context, plan)
    click.echo(markdown([measure.figures(group) for group in groups]))
    wins = measure.wins(groups)
    for name, value in wins.items():
        click.echo(f"{name} by the second scorer: {cell(value)} of prompts")
    facts = {**context.dalle.source, **names, "data": options["data"], "settings": dataclasses.asdict(context.settings),
             "paint": dataclasses.asdict(settings), "latents": options["latents"],
             "groups": [group.facts() for group in groups],
             "wins": {name: dataclasses.asdict(value) for name, value in wins.items()},
             "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    write_figures(options["json_file"], facts)
