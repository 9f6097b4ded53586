"""`dalle export`: models of this package as files of other projects."""

from pathlib import Path

import click

from dalle_mini_impl.cli.options import examples, out_option


@click.group(subcommand_metavar="FORMAT")
def export() -> None:
    """Convert a model to a file of another project.

    Only models that the other project could have made can be converted; docs/importing.md lists their settings.
    """


@export.command("dalle-pytorch", epilog=examples("dalle export dalle-pytorch runs/mine --out dalle.pt"))
@click.argument("model")
@out_option("The file to write, such as dalle.pt.", required=True)
def dalle_pytorch(model: str, out: Path) -> None:
    """Write MODEL as a dalle.pt of DALLE-pytorch 1.6.6.

    MODEL is a shipped name, a checkpoint folder or hf:USER/REPO. Its image tokenizer and transformer are written.
    """
    import torch

    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.checkpoint.parts import read_part
    from dalle_mini_impl.config.model import ImageTokenizerConfig, StreamConfig, TransformerConfig
    from dalle_mini_impl.config.yaml_io import from_dict
    from dalle_mini_impl.interop.whole.dalle_pytorch_export import ExportedModel, to_dalle_pytorch
    from dalle_mini_impl.util.files import replace_file

    folder = find_checkpoint(model)
    transformer = read_part(folder, "transformer")
    image_tokenizer = read_part(folder, "image_tokenizer")
    source = str(transformer.path)
    exported = ExportedModel(
        config=from_dict(TransformerConfig, transformer.config.get("transformer"), f"{source}: transformer"),
        stream=from_dict(StreamConfig, transformer.config.get("stream"), f"{source}: stream"),
        tensors=transformer.tensors,
        image_config=from_dict(ImageTokenizerConfig, image_tokenizer.config, str(image_tokenizer.path)),
        image_tensors=image_tokenizer.tensors,
    )
    content = to_dalle_pytorch(exported)
    with replace_file(out) as temporary:
        torch.save(content, temporary)
    click.echo(out)


@export.command("prior-transformer", epilog=examples("dalle export prior-transformer runs/mine --out exported"))
@click.argument("model")
@out_option("Folder to write to.", required=True, folder=True)
def prior_transformer(model: str, out: Path) -> None:
    """Write MODEL's prior as a PriorTransformer of diffusers.

    The noise schedule is written beside it, and the vectors of text ids, which only this package needs. MODEL is a
    shipped name, a checkpoint folder or hf:USER/REPO.
    """
    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.checkpoint.parts import read_part
    from dalle_mini_impl.interop.prior_transformer import export_prior

    export_prior(read_part(find_checkpoint(model), "prior"), out)
    click.echo(out)


@export.command("diffusion-decoder", epilog=examples("dalle export diffusion-decoder runs/mine --out exported"))
@click.argument("model")
@out_option("Folder to write to.", required=True, folder=True)
def diffusion_decoder(model: str, out: Path) -> None:
    """Write MODEL's diffusion decoder as diffusers has it.

    The parts of a UnCLIPPipeline are written: U-Net, projection of embeddings and noise schedule, those of the
    upsampler too, where there is one, and the vectors of text ids, which only this package needs. MODEL is a shipped
    name, a checkpoint folder or hf:USER/REPO.
    """
    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.interop.unclip import export_decoder

    export_decoder(find_checkpoint(model), out)
    click.echo(out)
