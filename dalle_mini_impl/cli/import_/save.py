"""Write what was imported into a checkpoint folder, and print what it is."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.interop.result import ImportedImageTokenizer, ImportedTransformer, ProjectInfo
    from dalle_mini_impl.text.json_tokenizer import JsonTokenizer


def refuse_existing(folder: Path, *parts: str) -> None:
    """Refuse to replace a part: other parts that were trained with it could no longer be used.

    Raises:
        UserError: the folder has one of the parts.
    """
    for part in parts:
        path = folder / f"{part}.safetensors"
        if path.exists():
            raise UserError(f"expected a folder without {path.name}, got {path}; choose another folder for --out")


def save_image_tokenizer(folder: Path, imported: "ImportedImageTokenizer") -> None:
    """Write the part `image_tokenizer`; the caller has checked that there is none."""
    from dalle_mini_impl.checkpoint.parts import save_part
    from dalle_mini_impl.config.yaml_io import to_dict

    config = imported.tokenizer.config
    tensors = imported.tokenizer.state_dict().values()
    n_parameters = sum(tensor.numel() for tensor in tensors)
    click.echo(f"{len(tensors)} tensors, {n_parameters:,} parameters; {imported.ignored} others ignored")
    click.echo(
        f"{config.codebook_size} image ids, each for {config.factor}×{config.factor} pixels, "
        f"{config.grid[0]}×{config.grid[1]} for {config.size[0]}×{config.size[1]}"
    )
    identity = save_part(folder, "image_tokenizer", imported.tokenizer, to_dict(config), {}, imported.dtype)
    click.echo(f"image tokenizer {identity} written to {folder / 'image_tokenizer.safetensors'}")


def save_whole_model(
    folder: Path,
    transformer: "ImportedTransformer",
    text_tokenizer: "JsonTokenizer | None",
    image_tokenizer: "ImportedImageTokenizer | None",
    project: "ProjectInfo",
    obstacle: str = "",
) -> None:
    """Write all parts, the settings and the model card.

    Args:
        folder: the checkpoint folder.
        transformer: the transformer.
        text_tokenizer: None for that in the folder, if it has one.
        image_tokenizer: None for that in the folder.
        project: recommended settings and model card.
        obstacle: why the text tokenizer that the model probably was trained with is missing.

    Raises:
        UserError: the parts do not belong together; nothing has been written then.
    """
    from dalle_mini_impl.checkpoint.parts import UNKNOWN_IDENTITY, read_part, save_part, save_tensors
    from dalle_mini_impl.checkpoint.settings import save_settings
    from dalle_mini_impl.checkpoint.text_tokenizer import has_text_tokenizer, read_text_tokenizer, save_text_tokenizer
    from dalle_mini_impl.config.model import ImageTokenizerConfig
    from dalle_mini_impl.config.yaml_io import from_dict, to_dict
    from dalle_mini_impl.util.files import replace_file

    stream = transformer.stream
    used_text_tokenizer = text_tokenizer or (read_text_tokenizer(folder) if has_text_tokenizer(folder) else None)
    if used_text_tokenizer is not None and used_text_tokenizer.vocab_size > stream.text_vocab:
        raise UserError(
            f"expected a text tokenizer with at most the transformer's {stream.text_vocab} ids, got "
            f"{used_text_tokenizer.vocab_size}; use the one it was trained with"
        )
    if image_tokenizer is None:
        part = read_part(folder, "image_tokenizer", weights=False)
        image_config = from_dict(ImageTokenizerConfig, part.config, str(part.path))
        image_identity = part.image_ids
    else:
        image_config = image_tokenizer.tokenizer.config
    if (image_config.codebook_size, image_config.grid) != (stream.image_vocab, stream.grid):
        raise UserError(
            f"expected an image tokenizer with the transformer's {stream.image_vocab} ids on a grid of {stream.grid}, "
            f"got {image_config.codebook_size} on {image_config.grid}; use the one it was trained with"
        )
    if text_tokenizer is not None:
        save_text_tokenizer(folder, text_tokenizer)
        click.echo(f"text tokenizer {text_tokenizer.identity}: {text_tokenizer.vocab_size} ids")
    if image_tokenizer is not None:
        image_identity = save_part(
            folder, "image_tokenizer", image_tokenizer.tokenizer, to_dict(image_config), {}, image_tokenizer.dtype
        )
        click.echo(
            f"image tokenizer {image_identity}: {image_config.codebook_size} ids, "
            f"{image_config.grid[0]}×{image_config.grid[1]} for "
            f"{image_config.size[0]}×{image_config.size[1]} pixels"
        )
    trained_with = {
        "text_tokenizer": used_text_tokenizer.identity if used_text_tokenizer else UNKNOWN_IDENTITY,
        "image_tokenizer": image_identity,
    }
    configs = {"stream": to_dict(stream), "transformer": to_dict(transformer.config)}
    identity = save_tensors(folder, "transformer", transformer.tensors, configs, trained_with)
    top_k = min(project.sampling.top_k, stream.image_vocab)
    save_settings(folder, dataclasses.replace(project.sampling, top_k=top_k), project.about)
    with replace_file(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(project.card, encoding="utf-8")
    n_parameters = sum(value.numel() for value in transformer.tensors.values())
    click.echo(f"transformer {identity}: {n_parameters:,} parameters")
    click.echo(f"model written to {folder}")
    if used_text_tokenizer is None:
        click.echo(
            f"warning: {folder} has no text tokenizer, so it cannot read captions; add the one it was trained with by "
            f"dalle import text-tokenizer{' --out ' + shlex.quote(str(folder)) if obstacle else ''}"
            f"{f' ({obstacle})' if obstacle else ''}",
            err=True,
        )
