"""`dalle import`: models and image tokenizers of other projects, as parts of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.interop.fill import Imported, ImportedTransformer

HALF = (0.5, 0.5, 0.5)
OUT = click.option("--out", required=True, type=click.Path(file_okay=False), help="Checkpoint folder to add it to.")
TRUST = click.option("--trust-pickle", is_flag=True, help="Also read a file that holds more than tensors.")


def common_options(image_size: int | None) -> Callable[[Any], Any]:
    """The options all formats share; `image_size` is the default of one of them, None what the file says."""
    said = "what the file says, or 256" if image_size is None else str(image_size)
    options = (
        OUT,
        click.option("--image-size", type=click.IntRange(1), default=image_size, show_default=said,
                     help="Side in pixels of the pictures that models on top of it will see."),
        TRUST,
    )  # fmt: skip

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group("import")
def import_() -> None:
    """Turn a model or an image tokenizer of another project into one of ours.

    It then works without that project's package; docs/importing.md tells what is known to work.
    """


@import_.command("taming-vqgan")
@click.argument("file")
@common_options(256)
def taming_vqgan(file: str, out: str, image_size: int, trust_pickle: bool) -> None:
    """Import a VQGAN of taming-transformers, nearest or Gumbel, or a VQ model of latent diffusion."""
    from dalle_mini_impl.interop import taming

    _write(out, taming.load, file, image_size=image_size, trust_pickle=trust_pickle)


@import_.command("llamagen-vq")
@click.argument("file")
@click.option("--codebook-norm/--no-codebook-norm", default=True, show_default=True,
              help="Whether it was trained to compare vectors by angle.")  # fmt: skip
@common_options(256)
def llamagen_vq(file: str, codebook_norm: bool, out: str, image_size: int, trust_pickle: bool) -> None:
    """Import an image tokenizer of LlamaGen."""
    from dalle_mini_impl.interop import llamagen

    options = {"image_size": image_size, "codebook_norm": codebook_norm, "trust_pickle": trust_pickle}
    _write(out, llamagen.load, file, **options)


@import_.command("openai-dvae")
@click.argument("files", nargs=2, metavar="ENCODER DECODER")
@common_options(256)
def openai_dvae(files: tuple[str, str], out: str, image_size: int, trust_pickle: bool) -> None:
    """Import OpenAI's dVAE of DALL-E 1, from encoder.pkl and decoder.pkl."""
    from dalle_mini_impl.interop import openai_dvae

    _write(out, openai_dvae.load, files, image_size=image_size, trust_pickle=trust_pickle)


@import_.command("dalle-pytorch-vae")
@click.argument("file")
@click.option("--mean", type=float, nargs=3, default=HALF, show_default=True,
              help="Its `normalization`; 0 0 0 for one trained without.")  # fmt: skip
@click.option("--std", type=float, nargs=3, default=HALF, show_default=True,
              help="The other half of it; 1 1 1 for one trained without.")  # fmt: skip
@common_options(None)
def dalle_pytorch_vae(
    file: str, mean: tuple[float, float, float], std: tuple[float, float, float], out: str,
    image_size: int | None, trust_pickle: bool,
) -> None:  # fmt: skip
    """Import a DiscreteVAE of DALLE-pytorch, from vae.pt or dalle.pt."""
    from dalle_mini_impl.interop import dalle_pytorch

    options = {"image_size": image_size, "mean": mean, "std": std, "trust_pickle": trust_pickle}
    _write(out, dalle_pytorch.load, file, **options)


@import_.command("dalle-pytorch")
@click.argument("file")
@click.option("--weights", type=click.Path(), help="Its weights, where DeepSpeed kept them apart from FILE.")
@click.option("--mean", type=float, nargs=3,
              help="`normalization` of its DiscreteVAE.  [default: what the file says, or 0.5]")  # fmt: skip
@click.option("--std", type=float, nargs=3, help="The other half of it.")
@OUT
@TRUST
def dalle_pytorch_model(file: str, out: str, **options: Any) -> None:
    """Import a whole DALLE of DALLE-pytorch, from dalle.pt, with the image tokenizer that is in it."""
    from dalle_mini_impl.interop import dalle_pytorch_model

    for part in ("image_tokenizer", "transformer"):
        _keep(out, part)
    click.echo(f"reading {file}", err=True)
    _save_model(out, *dalle_pytorch_model.load(file, **options))


def _write(out: str, load: "Callable[..., Imported]", source: str | tuple[str, str], **options: Any) -> None:
    _keep(out, "image_tokenizer")  # a transformer beside it would be of no more use
    click.echo(f"reading {source if isinstance(source, str) else ' and '.join(source)}", err=True)
    _save_image_tokenizer(out, load(source, **options))


def _keep(out: str, part: str) -> None:
    if (target := Path(out) / f"{part}.safetensors").exists():
        raise UserError(f"{target} is there already; choose another folder for --out")


def _save_image_tokenizer(out: str, imported: "Imported") -> str:
    from dalle_mini_impl.checkpoint import save_part
    from dalle_mini_impl.config_io import to_dict

    config, tensors = imported.tokenizer.config, imported.tokenizer.state_dict().values()
    click.echo(f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors):,} parameters; "
               f"{imported.left_out} others left out")  # fmt: skip
    click.echo(f"{config.codebook_size} image ids, each for {config.factor}×{config.factor} pixels, "
               f"{config.grid[0]}×{config.grid[1]} for {config.image_size}×{config.image_size}")  # fmt: skip
    identity = save_part(out, "image_tokenizer", imported.tokenizer, to_dict(config), {}, imported.dtype)
    click.echo(f"image tokenizer {identity} written to {Path(out) / 'image_tokenizer.safetensors'}")
    return identity


def _save_model(out: str, image_tokenizer: "Imported", transformer: "ImportedTransformer") -> None:
    from dalle_mini_impl.checkpoint import TEXT_TOKENIZER, UNKNOWN, load_text_tokenizer, save_settings, save_tensors
    from dalle_mini_impl.config import SamplingConfig
    from dalle_mini_impl.config_io import to_dict

    text_tokenizer = load_text_tokenizer(out) if (Path(out) / TEXT_TOKENIZER).exists() else None
    trained_with = {"text_tokenizer": text_tokenizer.identity if text_tokenizer else UNKNOWN,
                    "image_tokenizer": _save_image_tokenizer(out, image_tokenizer)}  # fmt: skip
    stream, tensors = transformer.stream, transformer.tensors
    config = {"stream": to_dict(stream), "transformer": to_dict(transformer.config)}
    identity = save_tensors(out, "transformer", tensors, config, trained_with)
    # None of these models has learned what no caption means, so guidance is left to those who want it.
    save_settings(out, SamplingConfig(guidance=1.0))
    click.echo(f"{stream.text_vocab} text ids, captions of up to {stream.text_length}; "
               f"{sum(tensor.numel() for tensor in tensors.values()):,} parameters")  # fmt: skip
    click.echo(f"transformer {identity} written to {Path(out) / 'transformer.safetensors'}")
    if text_tokenizer is None:
        click.echo(f"{out} has no text tokenizer yet, without which it can read no captions", err=True)
