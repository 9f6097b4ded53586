"""`dalle import diffusion-decoder`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import out_folder_option
from dalle_mini_impl.cli.options import examples


@click.command("diffusion-decoder", epilog=examples("dalle import diffusion-decoder exported --out runs/mine"))
@click.argument("folder", type=click.Path(path_type=Path))
@out_folder_option
def diffusion_decoder(folder: Path, out: Path) -> None:
    """Import a diffusion decoder that dalle export diffusion-decoder wrote.

    FOLDER has decoder/ and text_proj/, as diffusers writes them, and the vectors of text ids. The decoder is used with
    the scorer and the tokenizers that it was trained with; its upsampler comes with it.
    """
    from dalle_mini_impl.checkpoint.parts import save_part
    from dalle_mini_impl.interop.unclip import read_exported

    networks, configs, trained_with = read_exported(folder)
    for part, network in networks.items():
        identities = trained_with if part == "diffusion_decoder" else {}
        measured = [name for name, _ in network.named_buffers()]
        identity = save_part(out, part, network, configs[part], identities, measured=measured)
        click.echo(f"{part.replace('_', ' ')} {identity} written to {out}")
