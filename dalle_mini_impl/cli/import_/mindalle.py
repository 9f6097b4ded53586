"""`dalle import mindalle`."""

from pathlib import Path

import click

from dalle_mini_impl.cli.import_.options import out_folder_option, trust_pickle_option
from dalle_mini_impl.cli.import_.save import refuse_existing, save_whole_model
from dalle_mini_impl.cli.options import examples


@click.command(epilog=examples("dalle import mindalle minDALL-E/1.3B --out runs/mindalle"))
@click.argument("path", metavar="FOLDER_OR_FILE", type=click.Path(path_type=Path))
@out_folder_option
@trust_pickle_option
def mindalle(path: Path, out: Path, trust_pickle: bool) -> None:
    """Import minDALL-E.

    FOLDER is what its archive unpacks to. A FILE in that folder is another transformer to use with the other files,
    such as one that was trained further.
    """
    refuse_existing(out, "image_tokenizer", "transformer")

    from dalle_mini_impl.interop.image import taming_vqgan
    from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
    from dalle_mini_impl.interop.whole.mindalle import (
        PROJECT,
        TRANSFORMER_FILE,
        VOCAB_FILE,
        VQGAN_FILE,
        load,
        read_head_count,
    )

    folder = path.parent if path.is_file() else path
    transformer_file = path if path.is_file() else path / TRANSFORMER_FILE
    n_head = read_head_count(folder)
    text_tokenizer = import_text_tokenizer(folder / VOCAB_FILE, "char-bpe", lowercase=True)
    click.echo(f"reading {transformer_file} and {VQGAN_FILE}", err=True)
    transformer = load(transformer_file, n_head, text_tokenizer.pad_id, trust_pickle)
    image_tokenizer = taming_vqgan.load(
        folder / VQGAN_FILE, trust_pickle=trust_pickle, grid_side=transformer.stream.grid[0]
    )
    save_whole_model(out, transformer, text_tokenizer, image_tokenizer, PROJECT)
