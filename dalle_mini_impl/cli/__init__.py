"""The `dalle` command. Each subcommand has its own file, imported only when it is used."""

import sys

import click

from dalle_mini_impl import __version__
from dalle_mini_impl.cli.lazy_group import LazyGroup
from dalle_mini_impl.util.errors import UserError

COMMANDS = {
    "sample": "Draw pictures for prompts, ranked by the scorer.",
    "complete": "Redraw parts of a picture, or draw pictures like it.",
    "paint": "Optimise a picture until a scorer finds that it fits (VQGAN+CLIP).",
    "data": "Build, look into and check sets of captioned pictures.",
    "evaluate": "Measure a part or a whole model.",
    "caption": "Find captions for pictures by the transformer's likelihood.",
    "write": "Sample captions, or ends to one.",
    "classify": "Sort pictures by labels of your own, zero-shot.",
    "index": "Make the pictures of a folder searchable.",
    "search": "Find pictures by texts and pictures.",
    "bench": "Measure speed beside the peers and the machine's limits.",
    "compare": "Train image tokenizers alike and measure them.",
    "plan": "Count what training a transformer takes, from its config.",
    "info": "Tell what a model consists of and says of itself.",
    "push": "Send a checkpoint to a hub, for others to use.",
    "import": "Turn a model or tokenizer of another project into one of ours.",
    "export": "Turn a model into a file of another project.",
}


@click.group(
    cls=LazyGroup,
    package=__name__,
    summaries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
def dalle() -> None:
    """Train, sample and judge your own DALL-E 1."""


def main() -> None:
    """Run the command; bad input ends with one line and exit code 2, never with a traceback."""
    try:
        dalle.main(prog_name="dalle", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
