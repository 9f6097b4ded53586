"""`dalle import text-tokenizer`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import out_folder_option
from dalle_mini_impl.cli.options import examples
from dalle_mini_impl.util.errors import UserError

KINDS = ("clip-bpe", "json", "char-bpe", "bert", "yttm")
"""Keys of `interop.text.import_text_tokenizer.CONVERTERS`, which needs torch and so is not imported for `--help`."""


@click.command(
    "text-tokenizer",
    epilog=examples(
        "dalle import text-tokenizer --out runs/mine                 # CLIP's, wherever it is",
        "dalle import text-tokenizer bpe_simple_vocab_16e6.txt --out runs/mine",
        "dalle import text-tokenizer bpe.model --lowercase --bos --eos --out runs/rudalle",
    ),
)
@click.argument("file", type=click.Path(), required=False)
@click.option("--kind", type=click.Choice(KINDS), help="Its format.  [default: guessed from the content]")
@click.option("--lowercase", is_flag=True, help="Convert texts to lower case, as ruDALL-E and minDALL-E do.")
@click.option("--bos", is_flag=True, help="Begin every caption with its BOS, as ruDALL-E does.")
@click.option("--eos", is_flag=True, help="End every caption with its EOS, as ruDALL-E does.")
@out_folder_option
def text_tokenizer(file: str | None, kind: str | None, lowercase: bool, bos: bool, eos: bool, out: Path) -> None:
    """Import a text tokenizer into a checkpoint folder.

    FILE is CLIP's list of merges (clip-bpe), a tokenizer.json of the tokenizers library (json), a vocab.json with
    merges.txt beside it (char-bpe), a vocab.txt of BERT (bert) or a model of YouTokenToMe (yttm). Without FILE, CLIP's
    list of merges is looked for in the packages that ship it and in the cache of Hugging Face's hub.

    Captions get neither BOS nor EOS without --bos and --eos.
    """
    if file is None and kind not in (None, "clip-bpe"):
        raise UserError(f"expected a file with --kind {kind}, got none; only CLIP's merges are found without one")

    from dalle_mini_impl.checkpoint.text_tokenizer import save_text_tokenizer
    from dalle_mini_impl.interop.text.find_clip_merges import locate_merges
    from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer

    path = locate_merges(file)
    if path != file:
        click.echo(f"CLIP's merges found in {path}")
    tokenizer = import_text_tokenizer(path, kind, lowercase=lowercase, bos=bos, eos=eos)
    click.echo(
        f"{tokenizer.vocab_size} text ids; padding {tokenizer.pad_id}, BOS {tokenizer.bos_id}, "
        f"EOS {tokenizer.eos_id} (-1 is none)"
    )
    click.echo(f"text tokenizer {tokenizer.identity} written to {save_text_tokenizer(out, tokenizer)}")
