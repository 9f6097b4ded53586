"""`dalle import dalle-pytorch-vae`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import (
    image_size_option,
    normalization_options,
    out_folder_option,
    trust_pickle_option,
)
from dalle_mini_impl.cli.import_.save import refuse_existing, save_image_tokenizer
from dalle_mini_impl.cli.options import examples

Colour = tuple[float, float, float]


@click.command("dalle-pytorch-vae", epilog=examples("dalle import dalle-pytorch-vae vae.pt --out runs/vae"))
@click.argument("file", type=click.Path())
@normalization_options(
    (0.5, 0.5, 0.5),
    "First half of its normalization; 0 0 0 for one trained without.",
    "Second half of it; 1 1 1 for one trained without.",
)
@out_folder_option
@image_size_option(None)
@trust_pickle_option
def dalle_pytorch_vae(
    file: str, mean: Colour, std: Colour, out: Path, image_size: int | None, trust_pickle: bool
) -> None:
    """Import a DiscreteVAE of DALLE-pytorch.

    FILE is a vae.pt, or a dalle.pt that contains one.
    """
    refuse_existing(out, "image_tokenizer")

    from dalle_mini_impl.interop.image.dalle_pytorch_vae import load

    click.echo(f"reading {file}", err=True)
    save_image_tokenizer(out, load(file, image_size, mean, std, trust_pickle))
