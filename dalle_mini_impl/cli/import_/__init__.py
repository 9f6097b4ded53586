"""`dalle import`: models, image and text tokenizers of other projects, as ours."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.import_.whole import dalle_pytorch, mindalle, rudalle
from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.interop.result import Imported

HALF = (0.5, 0.5, 0.5)
TEXT_KINDS = ("clip-bpe", "json", "char-bpe", "bert", "yttm")


def common_options(image_size: int | None) -> Callable[[Any], Any]:
    """The options all formats share; `image_size` is the default of one of them, None what the file says."""
    said = "what the file says, or 256" if image_size is None else str(image_size)
    options = (
        click.option("--out", required=True, type=click.Path(file_okay=False), help="Checkpoint folder to add it to."),
        click.option("--image-size", type=click.IntRange(1), default=image_size, show_default=said,
                     help="Side in pixels of the pictures that models on top of it will see."),
        click.option("--trust-pickle", is_flag=True, help="Also read a file that holds more than tensors."),
    )  # fmt: skip

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group("import")
def import_() -> None:
    """Turn a model or a tokenizer of another project into one of ours.

    It then works without that project's package; docs/importing.md tells what is known to work.
    """


import_.add_command(dalle_pytorch)
import_.add_command(mindalle)
import_.add_command(rudalle)


@import_.command("taming-vqgan")
@click.argument("file")
@common_options(256)
def taming_vqgan(file: str, out: str, image_size: int, trust_pickle: bool) -> None:
    """Import a VQGAN of taming-transformers, nearest or Gumbel, or a VQ model of latent diffusion."""
    from dalle_mini_impl.interop.image import taming

    _write(out, taming.load, file, image_size=image_size, trust_pickle=trust_pickle)


@import_.command("llamagen-vq")
@click.argument("file")
@click.option(
    "--codebook-norm/--no-codebook-norm",
    default=True,
    show_default=True,
    help="Whether it was trained to compare vectors by angle.",
)
@common_options(256)
def llamagen_vq(file: str, codebook_norm: bool, out: str, image_size: int, trust_pickle: bool) -> None:
    """Import an image tokenizer of LlamaGen."""
    from dalle_mini_impl.interop.image import llamagen

    options = {"image_size": image_size, "codebook_norm": codebook_norm, "trust_pickle": trust_pickle}
    _write(out, llamagen.load, file, **options)


@import_.command("openai-dvae")
@click.argument("files", nargs=2, metavar="ENCODER DECODER")
@common_options(256)
def openai_dvae(files: tuple[str, str], out: str, image_size: int, trust_pickle: bool) -> None:
    """Import OpenAI's dVAE of DALL-E 1, from encoder.pkl and decoder.pkl."""
    from dalle_mini_impl.interop.image import openai_dvae

    _write(out, openai_dvae.load, files, image_size=image_size, trust_pickle=trust_pickle)


@import_.command("dalle-pytorch-vae")
@click.argument("file")
@click.option(
    "--mean",
    type=float,
    nargs=3,
    default=HALF,
    show_default=True,
    help="Its `normalization`; 0 0 0 for one trained without.",
)
@click.option(
    "--std",
    type=float,
    nargs=3,
    default=HALF,
    show_default=True,
    help="The other half of it; 1 1 1 for one trained without.",
)
@common_options(None)
def dalle_pytorch_vae(
    file: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    out: str,
    image_size: int | None,
    trust_pickle: bool,
) -> None:
    """Import a DiscreteVAE of DALLE-pytorch, from vae.pt or dalle.pt."""
    from dalle_mini_impl.interop.image import dalle_pytorch

    options = {"image_size": image_size, "mean": mean, "std": std, "trust_pickle": trust_pickle}
    _write(out, dalle_pytorch.load, file, **options)


@import_.command("text-tokenizer")
@click.argument("file")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Checkpoint folder to add it to.")
@click.option("--kind", type=click.Choice(TEXT_KINDS), help="Its format; guessed where not given.")
@click.option("--lowercase", is_flag=True, help="Lower all texts, as ruDALL-E and minDALL-E do.")
@click.option("--bos", is_flag=True, help="Begin every caption with its BOS, as ruDALL-E does.")
@click.option("--eos", is_flag=True, help="End every caption with its EOS, as ruDALL-E does.")
def text_tokenizer(file: str, out: str, kind: str | None, lowercase: bool, bos: bool, eos: bool) -> None:
    """Import a text tokenizer: CLIP's merges, a tokenizer.json, vocab.json with merges.txt, BERT's vocab.txt, or a
    model of YouTokenToMe.

    Captions get neither BOS nor EOS unless asked for.
    """
    from dalle_mini_impl.checkpoint.text_tokenizer import save_text_tokenizer
    from dalle_mini_impl.interop.text import load as text_tokenizers

    tokenizer = text_tokenizers.load(file, kind or "", lowercase=lowercase, bos=bos, eos=eos)
    click.echo(
        f"{tokenizer.vocab_size} text ids; padding {tokenizer.pad_id}, BOS {tokenizer.bos_id}, "
        f"EOS {tokenizer.eos_id} (-1 is none)"
    )
    click.echo(f"text tokenizer {tokenizer.identity} written to {save_text_tokenizer(out, tokenizer)}")


def _write(out: str, load: "Callable[..., Imported]", source: str | tuple[str, str], **options: Any) -> None:
    from dalle_mini_impl.checkpoint.parts import save_part
    from dalle_mini_impl.config.yaml_io import to_dict

    target = Path(out) / "image_tokenizer.safetensors"
    if target.exists():  # a transformer beside it would be of no more use
        raise UserError(f"{target} is there already; choose another folder for --out")
    click.echo(f"reading {source if isinstance(source, str) else ' and '.join(source)}", err=True)
    imported = load(source, **options)
    config, tensors = imported.tokenizer.config, imported.tokenizer.state_dict().values()
    click.echo(
        f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors):,} parameters; "
        f"{imported.left_out} others left out"
    )
    click.echo(
        f"{config.codebook_size} image ids, each for {config.factor}×{config.factor} pixels, "
        f"{config.grid[0]}×{config.grid[1]} for {config.image_size}×{config.image_size}"
    )
    identity = save_part(out, "image_tokenizer", imported.tokenizer, to_dict(config), {}, imported.dtype)
    click.echo(f"image tokenizer {identity} written to {target}")
