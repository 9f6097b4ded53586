"""`dalle import llamagen-vq`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import image_size_option, out_folder_option, trust_pickle_option
from dalle_mini_impl.cli.import_.save import refuse_existing, save_image_tokenizer
from dalle_mini_impl.cli.options import examples


@click.command("llamagen-vq", epilog=examples("dalle import llamagen-vq vq_ds16_c2i.pt --out runs/llamagen"))
@click.argument("file", type=click.Path())
@click.option(
    "--codebook-norm/--no-codebook-norm",
    default=True,
    show_default=True,
    help="Whether it was trained to compare vectors by angle.",
)
@out_folder_option
@image_size_option()
@trust_pickle_option
def llamagen_vq(file: str, codebook_norm: bool, out: Path, image_size: int, trust_pickle: bool) -> None:
    """Import an image tokenizer of LlamaGen.

    If FILE is a training checkpoint with averaged weights, these are imported.
    """
    refuse_existing(out, "image_tokenizer")

    from dalle_mini_impl.interop.image.llamagen_vq import load

    click.echo(f"reading {file}", err=True)
    save_image_tokenizer(out, load(file, image_size, codebook_norm, trust_pickle))
