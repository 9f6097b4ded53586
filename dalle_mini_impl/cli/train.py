"""`dalle train`: the training stages, and all of them with one command."""

from pathlib import Path

import click

from dalle_mini_impl.cli.options import MAX_MINUTES, FiniteFloat, examples
from dalle_mini_impl.train.stages import STAGES, stage_command


class StageGroup(click.Group):
    """The stages in the order in which they are run, after the command that runs all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["all", *STAGES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "all":
            return train_all
        return stage_command(STAGES[cmd_name]) if cmd_name in STAGES else None


@click.group(cls=StageGroup, subcommand_metavar="all SOURCE --out DIR | STAGE --config FILE")
def train() -> None:
    """Train a whole model, or one part of it.

    Each stage needs the results of the stages before it.

    \b
    Examples:
      dalle train all my_pictures --out runs/mine
      dalle train image-tokenizer --config configs/small/image_tokenizer.yaml data.source=my_pictures
      accelerate launch --config_file configs/accelerate/gpus-8.yaml -m dalle_mini_impl \\
        train transformer --config configs/emoji/transformer.yaml

    `dalle train STAGE --help` lists every config key of a stage.
    """


@click.command(
    "all",
    short_help="A folder of pictures in, a model and a report out.",
    epilog=examples(
        "dalle train all my_pictures --out runs/mine --minutes 15",
        "dalle train all my_pictures.jsonl --out runs/mine --minutes 60 transformer.model.n_layer=8",
        "dalle train all my_pictures --out runs/tuned --from emoji",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("source")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder for the model, the report and everything between.",
)
@click.option(
    "--minutes",
    type=FiniteFloat(0, MAX_MINUTES, min_open=True),
    default=15.0,
    show_default=True,
    metavar="N",
    help="Time for everything together.",
)
@click.option(
    "--preset",
    default="",
    metavar="NAME",
    help="small, medium, large, emoji (that of the included model) or a folder of configs of your own.",
)
@click.option(
    "--from",
    "start_from",
    default="",
    metavar="MODEL",
    help="Start from the weights of this model: a shipped name such as emoji, or a checkpoint folder.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew; an earlier run in DIR is moved to DIR/earlier.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]…")
def train_all(
    source: str, out: Path, minutes: float, preset: str, start_from: str, overwrite: bool, settings: tuple[str, ...]
) -> None:
    """Train a model on captioned pictures: all stages, within the time.

    SOURCE is a folder of pictures with .txt captions, a .jsonl or .csv file, or WebDataset tars, here or at an
    address such as s3://bucket/set. The settings follow from the pictures, the time and the speed of this machine,
    and are written to DIR/configs. After a kill the same command goes on. KEY=VALUE sets a key of all stages that
    have it, such as data.validation=0.1; STAGE.KEY=VALUE that of one, such as transformer.model.n_layer=8.
    """
    from dalle_mini_impl.train.whole.folder import Request
    from dalle_mini_impl.train.whole.run import main

    source = source.rstrip("/") or source
    request = Request(source=source, minutes=minutes, preset=preset, start_from=start_from, settings=settings)
    main(request, out, overwrite)
