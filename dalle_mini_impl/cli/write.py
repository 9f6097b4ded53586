"""`dalle write`: captions sampled from the transformer, without any picture."""

import json
from typing import Any

import click

OPTIONS = (
    click.option("--seed", default=0, show_default=True, help="Makes the whole run repeatable."),
    click.option("--temperature", default=1.0, show_default=True, help="0 always takes the likeliest text id."),
    click.option("--top-k", default=0, show_default=True, help="Choose among this many text ids; 0 is all."),
    click.option("--top-p", default=1.0, show_default=True, help="Choose among ids of this total probability."),
    click.option("--model", default="emoji", show_default=True, help="Shipped name or checkpoint folder."),
    click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or int8."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


def text_sampling_options(command: Any) -> Any:
    """Give a command the options of everything that samples text."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def generate_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `DalleMini.complete_text` takes under the same name."""
    return {name: options[name] for name in ("candidates", "seed", "temperature", "top_k", "top_p")}


@click.command()
@click.argument("beginning", default="")
@click.option("--candidates", default=32, show_default=True, help="Captions sampled.")
@click.option("--keep", default=10, show_default=True, help="Likeliest captions shown.")
@text_sampling_options
def write(beginning: str, keep: int, **options: Any) -> None:
    """Sample captions that begin with BEGINNING, and show the likeliest, with log p(text) in nats.

    Equal ones are shown once.
    """
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.text import printable

    dalle = DalleMini.from_pretrained(options["model"], options["device"], options["precision"])
    found = dalle.complete_text(beginning, keep=keep, **generate_arguments(options))
    if options["as_json"]:
        click.echo(json.dumps([{"text": text, "nats": nats} for text, nats in found], ensure_ascii=False, indent=2))
        return
    for text, nats in found:
        click.echo(f"{nats:8.2f}  {printable(text)}")
