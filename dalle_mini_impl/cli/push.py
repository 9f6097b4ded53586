"""`dalle push`: uploads a checkpoint folder to a hub."""

from pathlib import Path

import click

from dalle_mini_impl.cli.options import examples


@click.command(epilog=examples("dalle push runs/emoji/model hf:USER/REPO --private"))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("name", metavar="hf:USER/REPO")
@click.option("--private", is_flag=True, help="Create the repository as private, or refuse a public one.")
@click.option("--message", default="", help="Commit message.  [default: names the checkpoint]")
def push(folder: Path, name: str, private: bool, message: str) -> None:
    """Upload a checkpoint to a Hugging Face hub.

    Only the safetensors, settings, text tokenizer and model card in DIR are uploaded, after the parts have been
    loaded together once. Others then load the model as hf:USER/REPO.
    """
    from dalle_mini_impl.checkpoint import publish
    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    click.echo(f"checking {folder}", err=True)
    DalleMini.from_pretrained(folder, "cpu", "fp32")  # refuses a checkpoint that cannot be loaded
    click.echo(publish.push_checkpoint(find_checkpoint(folder), name, private, message))
