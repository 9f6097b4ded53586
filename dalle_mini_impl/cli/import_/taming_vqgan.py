"""`dalle import taming-vqgan`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import image_size_option, out_folder_option, trust_pickle_option
from dalle_mini_impl.cli.import_.save import refuse_existing, save_image_tokenizer
from dalle_mini_impl.cli.options import examples


@click.command(
    "taming-vqgan",
    epilog=examples("dalle import taming-vqgan vqgan_imagenet_f16_16384.ckpt --trust-pickle --out runs/vqgan"),
)
@click.argument("file", type=click.Path())
@out_folder_option
@image_size_option()
@trust_pickle_option
def taming_vqgan(file: str, out: Path, image_size: int, trust_pickle: bool) -> None:
    """Import a VQGAN of taming-transformers or latent-diffusion.

    FILE is a Lightning checkpoint of the VQGAN (nearest vector or Gumbel) or of a larger model that contains it, or a
    dictionary of its tensors.
    """
    refuse_existing(out, "image_tokenizer")

    from dalle_mini_impl.interop.image.taming_vqgan import load

    click.echo(f"reading {file}", err=True)
    save_image_tokenizer(out, load(file, image_size, trust_pickle))
