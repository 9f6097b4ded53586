"""`dalle import dalle-pytorch`: whole models of other projects."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.config import ImageTokenizerConfig, SamplingConfig
    from dalle_mini_impl.interop.fill import Imported, ImportedTransformer
    from dalle_mini_impl.json_tokenizer import JsonTokenizer

OUT = click.option("--out", required=True, type=click.Path(file_okay=False), help="Checkpoint folder to make.")
TRUST = click.option("--trust-pickle", is_flag=True, help="Also read files that hold more than tensors.")


@click.command()
@click.argument("file")
@click.option("--weights", type=click.Path(), help="Its weights, where DeepSpeed kept them apart from FILE.")
@click.option("--text-tokenizer", help="What it was trained with.  [default: the text tokenizer in --out, if any]")
@click.option("--mean", type=float, nargs=3,
              help="`normalization` of its DiscreteVAE.  [default: what the file says, or 0.5]")  # fmt: skip
@click.option("--std", type=float, nargs=3, help="The other half of it.")
@OUT
@TRUST
def dalle_pytorch(file: str, text_tokenizer: str | None, out: str, **options: Any) -> None:
    """Import a whole DALLE of DALLE-pytorch, from dalle.pt, with the image tokenizer that is in it."""
    from dalle_mini_impl.config import SamplingConfig
    from dalle_mini_impl.interop import dalle_pytorch_model as interop
    from dalle_mini_impl.interop import text_tokenizers

    _refuse_parts(out, "image_tokenizer", "transformer")
    text = text_tokenizers.load(text_tokenizer) if text_tokenizer else None
    click.echo(f"reading {file}", err=True)
    image, transformer = interop.load(file, **options)
    _save(out, transformer, text, image, SamplingConfig(guidance=1), interop.CARD)


def _refuse_parts(out: str, *parts: str) -> None:
    for part in parts:
        if (target := Path(out) / f"{part}.safetensors").exists():
            raise UserError(f"{target} is there already; choose another folder for --out")


def _save(
    out: str, transformer: "ImportedTransformer", text: "JsonTokenizer | None", image: "Imported | None",
    sampling: "SamplingConfig", card: str,
) -> None:  # fmt: skip
    """Write all parts; None stands for those that are in the folder already."""
    from dalle_mini_impl.checkpoint import UNKNOWN, read_part, save_part, save_tensors
    from dalle_mini_impl.config import ImageTokenizerConfig
    from dalle_mini_impl.config_io import from_dict, to_dict
    from dalle_mini_impl.files import replace_file
    from dalle_mini_impl.settings import save_settings
    from dalle_mini_impl.text_part import has_text_tokenizer, read_text_tokenizer, save_text_tokenizer

    folder, stream = Path(out), transformer.stream
    used = text or (read_text_tokenizer(folder) if has_text_tokenizer(folder) else None)
    if used is not None and used.vocab_size > stream.text_vocab:
        raise UserError(f"the text tokenizer has {used.vocab_size} ids, the transformer {stream.text_vocab}; "
                        f"use the one it was trained with")  # fmt: skip
    if image is None:
        part = read_part(folder, "image_tokenizer")
        _check(transformer, from_dict(ImageTokenizerConfig, part.config, str(part.path)))
        identity = part.identity
    else:
        config = image.tokenizer.config
        _check(transformer, config)
        identity = save_part(out, "image_tokenizer", image.tokenizer, to_dict(config), {}, image.dtype)
        click.echo(f"image tokenizer {identity}: {config.codebook_size} ids, {config.grid[0]}×{config.grid[1]} for "
                   f"{config.image_size}×{config.image_size} pixels")  # fmt: skip
    if text is not None:
        save_text_tokenizer(out, text)
        click.echo(f"text tokenizer {text.identity}: {text.vocab_size} ids")
    trained_with = {"text_tokenizer": used.identity if used else UNKNOWN, "image_tokenizer": identity}
    configs = {"stream": to_dict(stream), "transformer": to_dict(transformer.config)}
    identity = save_tensors(out, "transformer", transformer.tensors, configs, trained_with)
    save_settings(out, sampling)
    with replace_file(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    click.echo(f"transformer {identity}: {sum(value.numel() for value in transformer.tensors.values()):,} parameters")
    click.echo(f"model written to {out}")
    if used is None:
        click.echo(f"{out} has no text tokenizer yet, without which it can read no captions", err=True)


def _check(transformer: "ImportedTransformer", image: "ImageTokenizerConfig") -> None:
    """Refuse an image tokenizer that is not the transformer's."""
    stream = transformer.stream
    if (image.codebook_size, image.grid) != (stream.image_vocab, stream.grid):
        raise UserError(f"the image tokenizer has {image.codebook_size} ids on a grid of {image.grid}, the transformer "
                        f"{stream.image_vocab} on one of {stream.grid}; use the one it was trained with")  # fmt: skip
