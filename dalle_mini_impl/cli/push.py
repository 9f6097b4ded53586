"""`dalle push`: a checkpoint folder, sent to a hub."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("name", metavar="hf:USER/REPO")
@click.option("--private", is_flag=True, help="Let nobody see it who is not let in.")
@click.option("--message", default="", help="Of the commit.  [default: names the checkpoint]")
def push(folder: Path, name: str, private: bool, message: str) -> None:
    """Send the checkpoint in DIR to a Hugging Face hub, with its card; others name it as they see it here.

    Only safetensors, settings, text tokenizer and card are sent, once all of them fit together.
    """
    from dalle_mini_impl.checkpoint import publish
    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    click.echo(f"checking {folder}", err=True)
    DalleMini.from_pretrained(folder, "cpu", "fp32")  # refuses a checkpoint that no one could load
    click.echo(publish.push_checkpoint(find_checkpoint(folder), name, private, message))
