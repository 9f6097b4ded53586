"""`dalle import dalle-pytorch`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import normalization_options, out_folder_option, trust_pickle_option
from dalle_mini_impl.cli.import_.save import refuse_existing, save_whole_model
from dalle_mini_impl.cli.options import examples
from dalle_mini_impl.util.errors import UserError

Colour = tuple[float, float, float]


@click.command(
    "dalle-pytorch",
    epilog=examples(
        "dalle import dalle-pytorch dalle.pt --out runs/mine",
        "dalle import dalle-pytorch dalle.pt --text-tokenizer tokenizer.json --out runs/mine",
        "dalle import dalle-pytorch auxiliary.pt --weights pytorch_model.bin --out runs/mine",
    ),
)
@click.argument("file", type=click.Path())
@click.option("--weights", type=click.Path(), metavar="FILE", help="File of its weights, for a DeepSpeed checkpoint.")
@click.option(
    "--text-tokenizer",
    type=click.Path(),
    metavar="FILE",
    help="The text tokenizer it was trained with.  [default: that in --out, or CLIP's merges if the model has as many "
    "text ids]",
)
@normalization_options(None, "First half of the normalization of its DiscreteVAE.", "Second half of it.")
@out_folder_option
@trust_pickle_option
def dalle_pytorch(
    file: str,
    weights: str | None,
    text_tokenizer: str | None,
    mean: Colour | None,
    std: Colour | None,
    out: Path,
    trust_pickle: bool,
) -> None:
    """Import a whole DALLE of DALLE-pytorch.

    FILE is a dalle.pt, which contains the image tokenizer too.
    """
    refuse_existing(out, "image_tokenizer", "transformer")

    from dalle_mini_impl.checkpoint.text_tokenizer import has_text_tokenizer
    from dalle_mini_impl.interop.text.find_clip_merges import VOCAB_SIZE, locate_merges
    from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
    from dalle_mini_impl.interop.whole.dalle_pytorch import PROJECT, load

    text = import_text_tokenizer(locate_merges(text_tokenizer)) if text_tokenizer else None
    click.echo(f"reading {file}", err=True)
    image_tokenizer, transformer = load(file, weights, mean, std, trust_pickle)
    obstacle = ""
    if text is None and not has_text_tokenizer(out) and transformer.stream.text_vocab == VOCAB_SIZE:
        try:
            path = locate_merges(None)
            text = import_text_tokenizer(path)
            click.echo(f"with {VOCAB_SIZE} text ids it reads captions by CLIP's merges, found in {path}")
        except UserError as error:  # the model is usable without captions, and gets its text tokenizer later
            obstacle = str(error)
    save_whole_model(out, transformer, text, image_tokenizer, PROJECT, obstacle)
