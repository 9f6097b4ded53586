"""`dalle import openai-dvae`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import image_size_option, out_folder_option, trust_pickle_option
from dalle_mini_impl.cli.import_.save import refuse_existing, save_image_tokenizer
from dalle_mini_impl.cli.options import examples


@click.command(
    "openai-dvae", epilog=examples("dalle import openai-dvae encoder.pkl decoder.pkl --trust-pickle --out runs/dvae")
)
@click.argument("files", nargs=2, metavar="ENCODER DECODER", type=click.Path())
@out_folder_option
@image_size_option()
@trust_pickle_option
def openai_dvae(files: tuple[str, str], out: Path, image_size: int, trust_pickle: bool) -> None:
    """Import OpenAI's dVAE of DALL-E 1.

    ENCODER and DECODER are its files encoder.pkl and decoder.pkl, in any order.
    """
    refuse_existing(out, "image_tokenizer")

    from dalle_mini_impl.interop.image.openai_dvae import load

    click.echo(f"reading {' and '.join(files)}", err=True)
    save_image_tokenizer(out, load(files, image_size, trust_pickle))
