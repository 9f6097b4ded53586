"""`dalle import rudalle`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import out_folder_option, trust_pickle_option
from dalle_mini_impl.cli.import_.save import refuse_existing, save_whole_model
from dalle_mini_impl.cli.options import Count, examples
from dalle_mini_impl.util.errors import UserError


@click.command(
    epilog=examples(
        "dalle import rudalle pytorch_model_v3.bin --vae vqgan.gumbelf8-sber.model.ckpt "
        "--text-tokenizer bpe.model --out runs/rudalle"
    )
)
@click.argument("file", type=click.Path())
@click.option(
    "--vae",
    type=click.Path(),
    metavar="FILE",
    help="Its VQGAN, vqgan.gumbelf8-sber.model.ckpt.  [default: the image tokenizer in --out]",
)
@click.option(
    "--text-tokenizer",
    type=click.Path(),
    metavar="FILE",
    help="Its bpe.model.  [default: the text tokenizer in --out, if there is one]",
)
@click.option(
    "--heads",
    type=Count(),
    metavar="N",
    help="Attention heads.  [default: those of its models of that width]",
)
@out_folder_option
@trust_pickle_option
def rudalle(
    file: str, vae: str | None, text_tokenizer: str | None, heads: int | None, out: Path, trust_pickle: bool
) -> None:
    """Import ruDALL-E.

    FILE is the transformer of Malevich, Emojich, Surrealist or Kandinsky, version v2 or v3.
    """
    refuse_existing(out, "transformer", *(["image_tokenizer"] if vae else []))
    if vae is None and not (out / "image_tokenizer.safetensors").is_file():
        raise UserError(
            f"expected an image tokenizer in {out}, got none; give --vae, such as vqgan.gumbelf8-sber.model.ckpt"
        )

    from dalle_mini_impl.interop.image import taming_vqgan
    from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
    from dalle_mini_impl.interop.whole.rudalle import PROJECT, load

    text = None
    if text_tokenizer:
        text = import_text_tokenizer(text_tokenizer, "yttm", lowercase=True, bos=True, eos=True)
    click.echo(f"reading {file}{f' and {vae}' if vae else ''}", err=True)
    transformer = load(file, heads, trust_pickle)
    image_tokenizer = None
    if vae:
        image_tokenizer = taming_vqgan.load(vae, trust_pickle=trust_pickle, grid_side=transformer.stream.grid[0])
    save_whole_model(out, transformer, text, image_tokenizer, PROJECT)
