"""`dalle plan`: memory, operations and days that training a transformer takes, from its config."""

from dataclasses import asdict

import click

from dalle_mini_impl.cli.options import Count, FiniteFloat, echo_text, examples, json_option, write_json_file


@click.command(
    epilog=examples(
        "dalle plan configs/dalle1/12b.yaml --gpus 256",
        "dalle plan configs/300m.yaml model.n_layer=12 --grid 16 --json -",
    )
)
@click.argument("config")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--grid", type=Count(), default=32, show_default=True, help="Side of the token grid.")
@click.option(
    "--codebook", type=Count(), default=8192, show_default=True, help="Codebook size K, the number of image ids."
)
@click.option("--text-vocab", type=Count(), default=16384, show_default=True, help="Number of text ids.")
@click.option(
    "--embed-dim",
    type=Count(),
    default=512,
    show_default=True,
    help="Width of image embeddings, where the config has positions for one.",
)
@click.option(
    "--pictures", type=FiniteFloat(), default=1e8, show_default=True, help="Pictures to train on, repetitions counted."
)
@click.option("--gpus", type=Count(), default=8, show_default=True, help="Number of GPUs.")
@click.option("--memory", type=FiniteFloat(), default=80.0, show_default=True, help="Memory of each GPU in GB.")
@click.option(
    "--flops",
    type=FiniteFloat(),
    default=4e14,
    show_default=True,
    help="Operations per second that each GPU achieves in training.",
)
@json_option()
def plan(
    config: str,
    changes: tuple[str, ...],
    grid: int,
    codebook: int,
    text_vocab: int,
    embed_dim: int,
    pictures: float,
    gpus: int,
    memory: float,
    flops: float,
    json_file: str | None,
) -> None:
    """Estimate a transformer's training, and propose how to run it.

    CONFIG is a config of the transformer stage. Nothing is allocated, so any size can be estimated.
    """
    from tqdm import tqdm

    from dalle_mini_impl.config.model import StreamConfig
    from dalle_mini_impl.train.estimate import TrainingMachine, block_count, count_both, plans, propose
    from dalle_mini_impl.train.stages import STAGES, load_settings

    run = load_settings(STAGES["transformer"], config, changes)
    stream = StreamConfig(
        text_length=run.text_length,
        text_vocab=text_vocab,
        grid=(grid, grid),
        image_vocab=codebook,
        bos_id=1,
        patch=run.model.patch,
        embed_positions=run.image_embed.positions,
        embed_dim=embed_dim,
    )
    with tqdm(total=block_count(run), desc="counting", unit=" blocks", delay=2, leave=False) as bar:
        both = count_both(run, stream, bar.update)
    needs = both[run.recompute]
    machine = TrainingMachine(gpus, memory * 1e9, flops)
    ways = list(plans(needs, machine, pictures))
    proposal = propose(both, machine, run.run.batch_size, pictures)
    facts = {"needs": asdict(needs), "plans": [asdict(way) for way in ways]}
    write_json_file(json_file, {**facts, "proposal": proposal and asdict(proposal)})
    echo_text(
        f"{needs.parameters / 1e6:,.0f} M weights ({needs.in_blocks / 1e6:,.0f} M in the blocks), "
        f"{needs.ids} ids per picture, {needs.flops / 1e12:.3g} TFLOP per picture, "
        f"{pictures * needs.ids / 1e9:,.3g} G ids in all",
        json_file,
    )
    echo_text(
        f"{needs.states / 1e9:.3g} GB of weights, gradients, moments and EMA; "
        f"{needs.activations / 1e9:.3g} GB of activations for each picture's backward pass",
        json_file,
    )
    for way in ways:
        name = "sharded (FSDP)" if way.sharded else "a full copy on each (DDP)"
        fit = f"{way.pictures_at_once} pictures at once on each" if way.pictures_at_once else "does not fit"
        line = f"{gpus} GPUs, {name}: {way.states / 1e9:.3g} GB of {memory:g}, {fit}, {way.days:.3g} days"
        echo_text(line, json_file)
    if proposal:
        settings = f"run.accumulation={proposal.accumulation} recompute={str(proposal.recompute).lower()}"
        launch = "sharded (FSDP)" if proposal.sharded else "a full copy on each (DDP)"
        echo_text(
            f"proposed for run.batch_size={run.run.batch_size}: {settings}, {launch}: {proposal.pictures} pictures at "
            f"once on each, {proposal.days:.3g} days",
            json_file,
        )
    elif run.run.batch_size % gpus:
        echo_text(f"proposed: a run.batch_size that {gpus} GPUs can share, not {run.run.batch_size}", json_file)
    else:
        echo_text("proposed: more GPUs, or ones with more memory", json_file)
