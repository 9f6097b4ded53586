"""`dalle export`: models of ours as files of other projects."""

import click


@click.group()
def export() -> None:
    """Turn a model into a file of another project, where that has such models; docs/importing.md tells which."""


@export.command("dalle-pytorch")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The file to write, such as dalle.pt.")
def dalle_pytorch(model: str, out: str) -> None:
    """Write the image tokenizer and the transformer of MODEL as a dalle.pt that DALLE-pytorch 1.6.6 loads."""
    import torch

    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.checkpoint.parts import read_part
    from dalle_mini_impl.config.model import ImageTokenizerConfig, StreamConfig, TransformerConfig
    from dalle_mini_impl.config.yaml_io import from_dict
    from dalle_mini_impl.interop.whole import dalle_pytorch_export as interop
    from dalle_mini_impl.util.files import replace_file

    folder = find_checkpoint(model)
    transformer, image = read_part(folder, "transformer"), read_part(folder, "image_tokenizer")
    content = interop.export(
        interop.Model(
            from_dict(TransformerConfig, transformer.config.get("transformer"), f"{transformer.path}: transformer"),
            from_dict(StreamConfig, transformer.config.get("stream"), f"{transformer.path}: stream"),
            transformer.tensors,
            from_dict(ImageTokenizerConfig, image.config, str(image.path)),
            image.tensors,
        )
    )
    with replace_file(out) as temporary:
        torch.save(content, temporary)
    click.echo(out)
