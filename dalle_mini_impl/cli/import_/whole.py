"""`dalle import dalle-pytorch`, `mindalle` and `rudalle`: whole models of other projects."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.interop.result import Imported, ImportedTransformer, Origin
    from dalle_mini_impl.text.json_tokenizer import JsonTokenizer

OUT = click.option("--out", required=True, type=click.Path(file_okay=False), help="Checkpoint folder to make.")
TRUST = click.option("--trust-pickle", is_flag=True, help="Also read files that hold more than tensors.")


@click.command("dalle-pytorch")
@click.argument("file")
@click.option("--weights", type=click.Path(), help="Its weights, where DeepSpeed kept them apart from FILE.")
@click.option("--text-tokenizer", help="What it was trained with.  [default: the text tokenizer in --out]")
@click.option(
    "--mean", type=float, nargs=3, help="`normalization` of its DiscreteVAE.  [default: what the file says, or 0.5]"
)
@click.option("--std", type=float, nargs=3, help="The other half of it.")
@OUT
@TRUST
def dalle_pytorch(file: str, text_tokenizer: str | None, out: str, **options: Any) -> None:
    """Import a whole DALLE of DALLE-pytorch, from dalle.pt, with the image tokenizer that is in it."""
    from dalle_mini_impl.interop.text import load as text_tokenizers
    from dalle_mini_impl.interop.whole import dalle_pytorch as interop

    _refuse_parts(out, "image_tokenizer", "transformer")
    text = text_tokenizers.load(text_tokenizer) if text_tokenizer else None
    click.echo(f"reading {file}", err=True)
    image, transformer = interop.load(file, **options)
    _save(out, transformer, text, image, interop.ORIGIN)


@click.command()
@click.argument("path", metavar="DIR_OR_FILE")
@OUT
@TRUST
def mindalle(path: str, out: str, trust_pickle: bool) -> None:
    """Import minDALL-E, from the folder its archive unpacks to.

    A FILE is another transformer, such as one trained further, that lies beside the folder's other files.
    """
    from dalle_mini_impl.interop.image import taming
    from dalle_mini_impl.interop.text import load as text_tokenizers
    from dalle_mini_impl.interop.whole import mindalle as interop

    _refuse_parts(out, "image_tokenizer", "transformer")
    folder, file = Path(path), Path(path) / interop.STAGE2
    if folder.is_file():
        folder, file = folder.parent, folder
    n_head = interop.heads(folder)
    text = text_tokenizers.load(folder / interop.TEXT_TOKENIZER, "char-bpe", lowercase=True)
    click.echo(f"reading {file} and {interop.STAGE1}", err=True)
    transformer = interop.load(file, n_head, text.pad_id, trust_pickle)
    image = taming.load(folder / interop.STAGE1, trust_pickle=trust_pickle, side=transformer.stream.grid[0])
    _save(out, transformer, text, image, interop.ORIGIN)


@click.command()
@click.argument("file")
@click.option("--vae", help="Its VQGAN, vqgan.gumbelf8-sber.model.ckpt.  [default: the image tokenizer in --out]")
@click.option("--text-tokenizer", help="Its bpe.model.  [default: the text tokenizer in --out]")
@click.option("--heads", type=click.IntRange(1), help="Attention heads.  [default: what its models of that width have]")
@OUT
@TRUST
def rudalle(
    file: str, vae: str | None, text_tokenizer: str | None, heads: int | None, out: str, trust_pickle: bool
) -> None:
    """Import ruDALL-E: Malevich, Emojich, Surrealist or Kandinsky."""
    from dalle_mini_impl.interop.image import taming
    from dalle_mini_impl.interop.text import load as text_tokenizers
    from dalle_mini_impl.interop.whole import rudalle as interop

    _refuse_parts(out, "transformer", *(["image_tokenizer"] if vae else []))
    if vae is None and not (Path(out) / "image_tokenizer.safetensors").is_file():
        raise UserError(f"{out} has no image tokenizer; give --vae, such as vqgan.gumbelf8-sber.model.ckpt")
    text = None
    if text_tokenizer:
        text = text_tokenizers.load(text_tokenizer, "yttm", lowercase=True, bos=True, eos=True)
    click.echo(f"reading {file}{f' and {vae}' if vae else ''}", err=True)
    transformer = interop.load(file, heads, trust_pickle)
    image = taming.load(vae, trust_pickle=trust_pickle, side=transformer.stream.grid[0]) if vae else None
    _save(out, transformer, text, image, interop.ORIGIN)


def _refuse_parts(out: str, *parts: str) -> None:
    for part in parts:
        if (target := Path(out) / f"{part}.safetensors").exists():
            raise UserError(f"{target} is there already; choose another folder for --out")


def _save(
    out: str,
    transformer: "ImportedTransformer",
    text: "JsonTokenizer | None",
    image: "Imported | None",
    origin: "Origin",
) -> None:
    """Write all parts; None stands for those that are in the folder already."""
    from dalle_mini_impl.checkpoint.parts import UNKNOWN_IDENTITY, read_part, save_part, save_tensors
    from dalle_mini_impl.checkpoint.settings import save_settings
    from dalle_mini_impl.checkpoint.text_tokenizer import has_text_tokenizer, read_text_tokenizer, save_text_tokenizer
    from dalle_mini_impl.config.model import ImageTokenizerConfig
    from dalle_mini_impl.config.yaml_io import from_dict, to_dict
    from dalle_mini_impl.util.files import replace_file

    folder, stream = Path(out), transformer.stream
    used = text or (read_text_tokenizer(folder) if has_text_tokenizer(folder) else None)
    if used is not None and used.vocab_size > stream.text_vocab:
        raise UserError(
            f"the text tokenizer has {used.vocab_size} ids, the transformer {stream.text_vocab}; "
            f"use the one it was trained with"
        )
    if image is None:
        part = read_part(folder, "image_tokenizer", weights=False)
        config, identity = from_dict(ImageTokenizerConfig, part.config, str(part.path)), part.identity
    else:
        config = image.tokenizer.config
    if (config.codebook_size, config.grid) != (stream.image_vocab, stream.grid):
        raise UserError(
            f"the image tokenizer has {config.codebook_size} ids on a grid of {config.grid}, the "
            f"transformer {stream.image_vocab} on one of {stream.grid}; use the one it was trained with"
        )
    if text is not None:
        save_text_tokenizer(out, text)
        click.echo(f"text tokenizer {text.identity}: {text.vocab_size} ids")
    if image is not None:
        identity = save_part(out, "image_tokenizer", image.tokenizer, to_dict(config), {}, image.dtype)
        click.echo(
            f"image tokenizer {identity}: {config.codebook_size} ids, {config.grid[0]}×{config.grid[1]} for "
            f"{config.image_size}×{config.image_size} pixels"
        )
    trained_with = {"text_tokenizer": used.identity if used else UNKNOWN_IDENTITY, "image_tokenizer": identity}
    configs = {"stream": to_dict(stream), "transformer": to_dict(transformer.config)}
    identity = save_tensors(out, "transformer", transformer.tensors, configs, trained_with)
    top_k = min(origin.sampling.top_k, stream.image_vocab)
    save_settings(out, dataclasses.replace(origin.sampling, top_k=top_k), origin.about)
    with replace_file(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(origin.card, encoding="utf-8")
    click.echo(f"transformer {identity}: {sum(value.numel() for value in transformer.tensors.values()):,} parameters")
    click.echo(f"model written to {out}")
    if used is None:
        click.echo(f"{out} has no text tokenizer yet, without which it can read no captions", err=True)
