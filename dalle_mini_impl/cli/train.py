"""`dalle train`: the training stages."""

import click

from dalle_mini_impl.train.stages import STAGES, stage_command


class StageGroup(click.Group):
    """The stages in the order in which they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(STAGES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return stage_command(STAGES[cmd_name]) if cmd_name in STAGES else None


@click.group(cls=StageGroup, subcommand_metavar="STAGE --config FILE [KEY=VALUE]…")
def train() -> None:
    """Train one part of a model.

    Each stage needs the results of the stages before it.

    \b
    Examples:
      dalle train image-tokenizer --config configs/small/image_tokenizer.yaml data.source=my_pictures
      accelerate launch --config_file configs/accelerate/gpus-8.yaml -m dalle_mini_impl \\
        train transformer --config configs/emoji/transformer.yaml

    `dalle train STAGE --help` lists every config key of a stage.
    """
