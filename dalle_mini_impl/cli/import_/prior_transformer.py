"""`dalle import prior-transformer`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import out_folder_option
from dalle_mini_impl.cli.options import examples


@click.command("prior-transformer", epilog=examples("dalle import prior-transformer exported --out runs/mine"))
@click.argument("folder", type=click.Path(path_type=Path))
@out_folder_option
def prior_transformer(folder: Path, out: Path) -> None:
    """Import a prior that dalle export prior-transformer wrote.

    FOLDER has prior/config.json and the weights beside it, as diffusers writes them, and the vectors of text ids. The
    prior is used with the text tokenizer and the scorer that it was trained with.
    """
    from dalle_mini_impl.checkpoint.parts import save_part
    from dalle_mini_impl.interop.prior_transformer import read_exported

    prior, config, trained_with = read_exported(folder)
    click.echo(f"prior {save_part(out, 'prior', prior, config, trained_with)} written to {out}")
