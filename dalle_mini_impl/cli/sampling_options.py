"""What all commands that draw pictures have in common: their options and what they write."""

import json
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dalle_mini_impl.pipeline.results import Result

OPTIONS = (
    click.option("--candidates", default=32, show_default=True, help="Pictures sampled per prompt."),
    click.option("--keep", default=8, show_default=True, help="Best pictures kept per prompt."),
    click.option("--seed", default=0, show_default=True, help="Makes the whole run repeatable."),
    click.option("--temperature", type=float, help="0 always takes the likeliest id.  [default: the model's]"),
    click.option("--top-k", type=int, help="Choose among this many image ids; 0 is all.  [default: the model's]"),
    click.option("--top-p", type=float, help="Choose among ids of this total probability.  [default: the model's]"),
    click.option("--guidance", type=float, help="How strongly to follow the prompt; 1 is off.  [default: the model's]"),
    click.option("--negative", default="", help="What to steer away from."),
    click.option("--rank", help="What makes a picture good: likelihood, clip, both or none.  [default: the model's]"),
    click.option("--prune/--no-prune", default=None, help="Give up weak candidates early.  [default: the model's]"),
    click.option("--tile/--no-tile", default=None, help="Pictures to lay side by side.  [default: the model's]"),
    click.option("--columns", default=0, help="Pictures per row of the grid; 0 chooses."),
    click.option("--scores", is_flag=True, help="Write the scores under the pictures."),
    click.option("--out", default="grid.png", show_default=True, type=click.Path(), help="The grid."),
    click.option("--save-dir", type=click.Path(), help="Folder for the separate pictures."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
    click.option("--chunk", default=64, show_default=True, help="Candidates drawn at a time; less needs less memory."),
    click.option("--json", "as_json", is_flag=True, help="Print seeds and scores as JSON."),
)


def sampling_options(command: Any) -> Any:
    """Give a command the options of everything that draws candidates."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def check(options: dict[str, Any]) -> None:
    """Refuse what can be refused before a model is loaded.

    Raises:
        UserError: the chunk is no number of candidates.
    """
    if options["chunk"] < 1:
        raise UserError(f"--chunk {options['chunk']} was given, expected at least 1")


def generate_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `DalleMini.generate` takes under the same name."""
    sampling = ("temperature", "top_k", "top_p", "guidance", "rank", "prune", "tile")
    return {name: options[name] for name in ("candidates", "keep", "seed", "negative", *sampling)}


def ids_to_draw(request: dict[str, Any], length: int) -> int:
    """How many image ids `DalleMini.generate` draws with these arguments, `length` for each picture."""
    from dalle_mini_impl.sampling.tiling import PASSES

    candidates = len(request["seeds"]) if "seeds" in request else max(0, request["candidates"])
    return candidates * length * (1 + PASSES * bool(request.get("tile")))


def write(results: "list[Result]", sheet: "Image.Image", metadata: dict[str, Any], options: dict[str, Any]) -> None:
    """Report results, then write their sheet and, where wanted, each picture."""
    from dalle_mini_impl.util.images import save_png

    report(results, options)
    click.echo(str(save_png(sheet, options["out"], metadata)), err=options["as_json"])
    if options["save_dir"]:
        for result in results:
            result.save(options["save_dir"])
        click.echo(options["save_dir"], err=options["as_json"])


def report(results: "list[Result]", options: dict[str, Any]) -> None:
    """Print what was kept, as text or JSON."""
    if options["as_json"]:
        click.echo(json.dumps([result.metadata() for result in results], ensure_ascii=False))
        return
    for result in results:
        best = result[0]
        score = "not ranked" if best.score is None else f"best score {best.score:.3f}"
        click.echo(f"{result.prompt or 'no prompt'}: {score}, seed {best.seed}")
