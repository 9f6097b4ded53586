"""The `dalle` command. Each subcommand has its own file, imported only when it is used."""

import click

from dalle_mini_impl import __version__
from dalle_mini_impl.cli.lazy_group import LazyGroup
from dalle_mini_impl.util.command_line import one_line_warnings, run_program

SECTIONS = {
    "Draw": {
        "sample": "Draw pictures for prompts, best first.",
        "complete": "Redraw parts of a picture, or draw variations of it.",
        "vary": "Draw variations of a picture (DALL-E 2).",
        "mix": "Draw pictures between two pictures or texts (DALL-E 2).",
        "edit": "Change a picture by the difference of two texts (DALL-E 2).",
        "components": "Draw what few components of a picture's embedding say (DALL-E 2).",
        "paint": "Optimise one picture until it fits all prompts (VQGAN+CLIP).",
        "app": "Serve a page to draw, complete, paint and search (extra: app).",
        "serve": "Draw over HTTP, for clients of OpenAI's images API.",
    },
    "Judge": {
        "classify": "Find which labels fit pictures best (zero-shot).",
        "index": "Make the pictures of a folder, or of tars, searchable.",
        "search": "Find pictures by texts and pictures.",
        "caption": "Rank captions by how likely they make a picture.",
        "write": "Sample captions from the transformer.",
    },
    "Train": {
        "data": "Build sets of captioned pictures, and inspect your own.",
        "config": "List, print and copy the configs that ship with the package.",
        "train": "Train a whole model, or one part of it.",
        "plan": "Estimate a transformer's training, and propose how to run it.",
        "compare": "Train image tokenizers for equal time and measure them.",
    },
    "Exchange": {
        "import": "Convert a model or tokenizer of another project to ours.",
        "export": "Convert a model to a file of another project.",
        "push": "Upload a checkpoint to a Hugging Face hub.",
        "info": "Show the parts, settings and measured quality of a model.",
    },
    "Measure": {
        "evaluate": "Measure the quality of a part or of a whole model.",
        "bench": "Measure speed against peers and the machine's limits.",
    },
    "Set up": {
        "doctor": "Show what this machine has, what it lacks, and what to do.",
        "completion": "Print the script that completes commands and options in a shell.",
    },
}
"""Heading -> command -> its line in `dalle --help`."""

COMMANDS = {name: text for commands in SECTIONS.values() for name, text in commands.items()}


@click.group(
    cls=LazyGroup,
    package=__name__,
    summaries=COMMANDS,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND",
    epilog="dalle COMMAND --help shows the options of a command, with an example.",
)
@click.version_option(__version__)
@click.pass_context
def dalle(context: click.Context) -> None:
    """Train, sample and judge your own DALL-E 1."""
    context.with_resource(one_line_warnings())


def main() -> None:
    """Run the command; bad input ends with one line on standard error and exit code 2, never with a traceback."""
    run_program(dalle, "dalle")
