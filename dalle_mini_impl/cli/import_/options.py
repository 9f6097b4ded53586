"""Options that the commands of `dalle import` share."""

from collections.abc import Callable

import click

from dalle_mini_impl.cli.options import F, FiniteFloat, add_options, out_option

out_folder_option = out_option("Checkpoint folder to write to.", required=True, folder=True)
"""`--out FOLDER`, passed on as a `Path`."""

trust_pickle_option = click.option(
    "--trust-pickle", is_flag=True, help="Also read files that hold more than tensors; no code in them is run."
)
"""`--trust-pickle`; `interop.read_weights.read_file` says what it allows."""


def image_size_option(default: int | None = 256) -> Callable[[F], F]:
    """`--image-size N`; a default of None stands for the size in the file."""
    return click.option(
        "--image-size",
        type=click.IntRange(1, 2**14),
        default=default,
        show_default="that in the file, or 256" if default is None else True,
        metavar="PIXELS",
        help="Side of the pictures of models on top of it.",
    )


def normalization_options(
    default: tuple[float, float, float] | None, mean_help: str, std_help: str
) -> Callable[[F], F]:
    """`--mean R G B` and `--std R G B`: the `normalization` of a DiscreteVAE; None stands for that in the file."""
    options = [
        click.option(
            name,
            type=FiniteFloat(),
            nargs=3,
            default=default,
            show_default="that in the file, or 0.5" if default is None else True,
            metavar="R G B",
            help=help,
        )
        for name, help in (("--mean", mean_help), ("--std", std_help))
    ]
    return add_options(options)
