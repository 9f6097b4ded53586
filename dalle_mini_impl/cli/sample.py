"""`dalle sample`: prompts -> one picture grid, and optionally each picture as its own file."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.results import Result


@click.command()
@click.argument("prompts", nargs=-1, metavar="PROMPT…")
@click.option("--prompts-file", type=click.Path(), help="Text file with one prompt per line.")
@click.option("--from", "picture", type=click.Path(), help="Make the picture in this PNG again.")
@click.option("--model", default=None, help="Shipped name or checkpoint folder.  [default: emoji]")
@click.option("--candidates", default=32, show_default=True, help="Pictures sampled per prompt.")
@click.option("--keep", default=8, show_default=True, help="Best pictures kept per prompt.")
@click.option("--seed", default=0, show_default=True, help="Makes the whole run repeatable.")
@click.option("--temperature", type=float, help="0 always takes the likeliest id.  [default: the model's]")
@click.option("--top-k", type=int, help="Choose among this many image ids; 0 is all.  [default: the model's]")
@click.option("--top-p", type=float, help="Choose among ids of this total probability.  [default: the model's]")
@click.option("--guidance", type=float, help="How strongly to follow the prompt; 1 is off.  [default: the model's]")
@click.option("--negative", default="", help="What to steer away from.")
@click.option("--rank", help="What makes a picture good: likelihood, clip, both or none.  [default: the model's]")
@click.option("--prune/--no-prune", default=None, help="Give up weak candidates early.  [default: the model's]")
@click.option("--columns", default=0, help="Pictures per row of the grid; 0 chooses.")
@click.option("--scores", is_flag=True, help="Write the scores under the pictures.")
@click.option("--out", default="grid.png", show_default=True, type=click.Path(), help="The grid.")
@click.option("--save-dir", type=click.Path(), help="Folder for the separate pictures.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--precision", help="auto, fp32, bf16 or int8.  [default: that of --from's picture, or auto]")
@click.option("--chunk", default=64, show_default=True, help="Candidates decoded at a time; less needs less memory.")
@click.option("--json", "as_json", is_flag=True, help="Print seeds and scores as JSON.")
def sample(prompts: tuple[str, ...], **options: Any) -> None:
    """Draw pictures for one or several prompts, best first.

    Launched in several processes (accelerate launch -m dalle_mini_impl sample …) each draws some of the prompts.
    """
    texts = read_prompts(prompts, options["prompts_file"])
    if options["picture"] and texts:
        raise UserError("both prompts and --from were given; --from takes its prompts from the picture")
    if not options["picture"] and not texts:
        raise UserError('no prompt was given; try: dalle sample "a red heart"')
    if options["chunk"] < 1:
        raise UserError(f"--chunk {options['chunk']} was given, expected at least 1")

    from tqdm import tqdm

    from dalle_mini_impl.images import read_metadata, save_png
    from dalle_mini_impl.pipeline import DalleMini
    from dalle_mini_impl.processes import Processes
    from dalle_mini_impl.results import grid

    processes = Processes(options["device"])
    warnings.showwarning = lambda message, *rest: click.echo(f"warning: {message}", err=True)
    recorded = read_metadata(options["picture"]) if options["picture"] else None
    jobs = (
        recorded_jobs(recorded, options["picture"])
        if recorded is not None
        else [new_job(text, options) for text in texts]
    )
    name = options["model"] or (recorded or {}).get("model", "emoji")
    precision = options["precision"] or (recorded or {}).get("precision", "auto")
    dalle = DalleMini.from_pretrained(name, processes.device, precision)
    if recorded and recorded["checkpoint"] != dalle.source["checkpoint"]:
        raise UserError(f"{options['picture']} was made by checkpoint {recorded['checkpoint']}, model {name} is "
                        f"{dalle.source['checkpoint']}; name the model it came from with --model")  # fmt: skip
    mine = processes.mine(jobs)
    count = sum(len(job.get("seeds") or range(job["candidates"])) for job in mine)
    drawn: list[Result] = []
    quiet = None if processes.is_main else True  # None: where there is no terminal
    with tqdm(total=count * dalle.stream.image_length, unit=" ids", disable=quiet, leave=False) as bar:
        for job in mine:
            drawn.append(dalle.generate(**job, chunk=options["chunk"], progress=bar.update))
    results = processes.gather(drawn)
    if not processes.is_main:
        return
    layout = (recorded or {}).get("layout", {"columns": options["columns"], "scores": options["scores"]})
    report(results, options)
    if recorded and "layout" not in recorded:  # a separate picture, not a grid
        sheet, metadata = results[0][0].image, results[0].metadata()
    else:
        sheet, metadata = grid(results, **layout), {**sheet_metadata(results), "layout": layout}
    click.echo(str(save_png(sheet, options["out"], metadata)), err=options["as_json"])
    if options["save_dir"]:
        for result in results:
            result.save(options["save_dir"])
        click.echo(options["save_dir"], err=options["as_json"])


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
    sampling = {name: options[name] for name in ("temperature", "top_k", "top_p", "guidance", "rank", "prune")}
    rest = {name: options[name] for name in ("candidates", "keep", "seed", "negative")}
    return {"prompt": text, **rest, **sampling}


def recorded_jobs(recorded: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """Arguments of `DalleMini.generate` that make the pictures of a PNG's metadata again, prompt by prompt.

    Raises:
        UserError: the metadata is not that of a sampled picture.
    """
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
        job = jobs.setdefault(key, {"prompt": key[0], "negative": key[1], "seeds": [], **recorded["sampling"]})
        job["seeds"].append(picture["seed"])
        job["keep"] = len(job["seeds"])
    return list(jobs.values())


def sheet_metadata(results: "list[Result]") -> dict[str, Any]:
    """Metadata of a sheet of several results."""
    whole = results[0].metadata()
    whole["pictures"] = [picture for result in results for picture in result.metadata()["pictures"]]
    return whole


def report(results: "list[Result]", options: dict[str, Any]) -> None:
    """Print what was kept, as text or JSON."""
    if options["as_json"]:
        click.echo(json.dumps([result.metadata() for result in results], ensure_ascii=False))
        return
    for result in results:
        best = result[0]
        score = "not ranked" if best.score is None else f"best score {best.score:.3f}"
        click.echo(f"{result.prompt}: {score}, seed {best.seed}")
