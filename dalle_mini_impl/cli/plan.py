"""`dalle plan`: memory, operations and days that training a transformer takes, from its config."""

import json
from dataclasses import asdict

import click

from dalle_mini_impl.util.errors import UserError


@click.command()
@click.argument("config")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--grid", default=32, show_default=True, help="Side of the token grid.")
@click.option("--codebook", default=8192, show_default=True, help="Image ids there are.")
@click.option("--text-vocab", default=16384, show_default=True, help="Text ids there are.")
@click.option("--pictures", default=1e8, show_default=True, help="Captioned pictures to train on, repeated ones too.")
@click.option("--gpus", default=8, show_default=True, help="How many there are.")
@click.option("--memory", default=80.0, show_default=True, help="GB of each.")
@click.option("--flops", default=4e14, show_default=True, help="Operations a second that each achieves in training.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan(
    config: str,
    changes: tuple[str, ...],
    grid: int,
    codebook: int,
    text_vocab: int,
    pictures: float,
    gpus: int,
    memory: float,
    flops: float,
    as_json: bool,
) -> None:
    """Count what training the transformer of CONFIG takes; nothing is allocated, so any size can be asked for."""
    from dalle_mini_impl.config.model import StreamConfig
    from dalle_mini_impl.config.training import TransformerRun
    from dalle_mini_impl.config.yaml_io import load
    from dalle_mini_impl.train.estimate import TrainingMachine, count, plans

    if min(grid, codebook, text_vocab) < 1:
        raise UserError(
            f"grid {grid}, codebook {codebook} and text vocab {text_vocab} were given; each must be at least 1"
        )
    run = load(TransformerRun, config, list(changes))
    stream = StreamConfig(
        text_length=run.text_length, text_vocab=text_vocab, grid=(grid, grid), image_vocab=codebook, bos_id=1
    )
    needs = count(run, stream)
    ways = list(plans(needs, TrainingMachine(gpus, memory * 1e9, flops), pictures))
    if as_json:
        click.echo(json.dumps({"needs": asdict(needs), "plans": [asdict(way) for way in ways]}))
        return
    click.echo(
        f"{needs.parameters / 1e6:,.0f} M weights ({needs.in_blocks / 1e6:,.0f} M in the blocks), "
        f"{needs.ids} ids a picture, {needs.flops / 1e12:.3g} TFLOP a picture, "
        f"{pictures * needs.ids / 1e9:,.3g} G ids in all"
    )
    click.echo(
        f"{needs.states / 1e9:.3g} GB of weights, gradients, moments and averages; "
        f"{needs.kept / 1e9:.3g} GB kept for each picture's backward pass"
    )
    for way in ways:
        name = "shared out (FSDP)" if way.sharded else "whole on each (DDP)"
        fit = f"{way.pictures_at_once} pictures at once on each" if way.pictures_at_once else "does not fit"
        click.echo(f"{gpus} GPUs, {name}: {way.states / 1e9:.3g} GB of {memory:g}, {fit}, {way.days:.3g} days")
