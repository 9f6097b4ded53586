"""`dalle sample`: prompts -> one picture grid, and optionally each picture as its own file."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.sampling_options import check, generate_arguments, ids_to_draw, sampling_options, write
from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.results import Result


@click.command()
@click.argument("prompts", nargs=-1, metavar="PROMPT…")
@click.option("--prompts-file", type=click.Path(), help="Text file with one prompt per line.")
@click.option("--from", "picture", type=click.Path(), help="Make the picture in this PNG again.")
@click.option("--model", default=None, help="Shipped name, checkpoint folder or hf:USER/REPO.  [default: emoji]")
@click.option("--precision", help="auto, fp32, bf16 or int8.  [default: that of --from's picture, or auto]")
@sampling_options
def sample(prompts: tuple[str, ...], **options: Any) -> None:
    """Draw pictures for one or several prompts, best first.

    Launched in several processes (accelerate launch -m dalle_mini_impl sample …) each draws some of the prompts.
    """
    texts = read_prompts(prompts, options["prompts_file"])
    if options["picture"] and texts:
        raise UserError("both prompts and --from were given; --from takes its prompts from the picture")
    if not options["picture"] and not texts:
        raise UserError('no prompt was given; try: dalle sample "a red heart"')
    check(options)

    from tqdm import tqdm

    from dalle_mini_impl.checkpoint.hub import PREFIX
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.pipeline.results import grid
    from dalle_mini_impl.util.distributed import Processes
    from dalle_mini_impl.util.images import read_metadata

    processes = Processes(options["device"])
    warnings.showwarning = lambda message, *rest: click.echo(f"warning: {message}", err=True)
    recorded = read_metadata(options["picture"]) if options["picture"] else None
    jobs = (
        recorded_jobs(recorded, options["picture"])
        if recorded is not None
        else [new_job(text, options) for text in texts]
    )
    name = options["model"] or (recorded or {}).get("model", "emoji")
    if not options["model"] and str(name).startswith(PREFIX):
        raise UserError(f"{options['picture']} was drawn by {name}; to have that downloaded, add --model {name}")
    precision = options["precision"] or (recorded or {}).get("precision", "auto")
    dalle = DalleMini.from_pretrained(name, processes.device, precision)
    if recorded and recorded["checkpoint"] != dalle.source["checkpoint"]:
        raise UserError(
            f"{options['picture']} was made by checkpoint {recorded['checkpoint']}, model {name} is "
            f"{dalle.source['checkpoint']}; name the model it came from with --model"
        )
    mine = processes.own_items(jobs)
    count = sum(ids_to_draw(request, dalle.stream.image_length) for request in mine)
    drawn: list[Result] = []
    quiet = None if processes.is_main else True  # None: where there is no terminal
    with tqdm(total=count, unit=" ids", disable=quiet, leave=False) as bar:
        for request in mine:
            drawn.append(dalle.generate(**request, chunk=options["chunk"], progress=bar.update))
    results = processes.gather(drawn)
    if not processes.is_main:
        return
    layout = (recorded or {}).get("layout", {"columns": options["columns"], "scores": options["scores"]})
    if recorded and "layout" not in recorded:  # a separate picture, not a grid
        sheet, metadata = results[0][0].image, results[0].metadata()
    else:
        sheet, metadata = grid(results, **layout), {**sheet_metadata(results), "layout": layout}
    write(results, sheet, metadata, options)


def read_prompts(prompts: tuple[str, ...], path: str | None) -> list[str]:
    """Prompts of the command line, then those of the file, each once, blank ones left out."""
    # Bytes that are no UTF-8 arrive as lone surrogates, which neither a tokenizer nor a PNG can hold.
    texts = [text for prompt in prompts if (text := prompt.encode("utf-8", "replace").decode()).strip()]
    if path:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read prompts file {path} ({error}); give a UTF-8 text file") from error
        texts += [line.strip() for line in lines if line.strip()]
    return list(dict.fromkeys(texts))


def new_job(text: str, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `DalleMini.generate` for a prompt of the command line."""
    return {"prompt": text, **generate_arguments(options)}


def recorded_jobs(recorded: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """Arguments of `DalleMini.generate` that make the pictures of a PNG's metadata again, prompt by prompt.

    Raises:
        UserError: the metadata is not that of a sampled picture.
    """
    if isinstance(recorded, dict) and "canvas" in recorded:
        raise UserError(f"{path} was made from another picture; run dalle complete on that one again")
    wanted = {"prompt", "negative", "seed", "score"}
    if (
        not isinstance(recorded, dict)
        or not {"checkpoint", "sampling", "pictures"} <= set(recorded)
        or not recorded["pictures"]
        or not all(wanted <= set(picture) for picture in recorded["pictures"])
    ):
        raise UserError(f"{path} does not say how it was sampled; give a PNG made by dalle sample")
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for picture in recorded["pictures"]:
        key = (picture["prompt"], picture["negative"])
        request = jobs.setdefault(key, {"prompt": key[0], "negative": key[1], "seeds": [], **recorded["sampling"]})
        request["seeds"].append(picture["seed"])
        request["keep"] = len(request["seeds"])
    return list(jobs.values())


def sheet_metadata(results: "list[Result]") -> dict[str, Any]:
    """Metadata of a sheet of several results."""
    whole = results[0].metadata()
    whole["pictures"] = [picture for result in results for picture in result.metadata()["pictures"]]
    return whole
