"""`dalle sample`: prompts -> one grid of pictures and, with `--save-dir`, each picture as a file of its own."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.many_prompts import draw_many, few_prompts
from dalle_mini_impl.cli.options import (
    check_ray_options,
    examples,
    model_option,
    precision_option,
    ray_options,
)
from dalle_mini_impl.cli.sampling_options import (
    announce_loading,
    check_format,
    generate_arguments,
    generate_shown,
    progress_total,
    sampling_options,
    use_scorer,
    write_results,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.recorded import Recorded
    from dalle_mini_impl.pipeline.results import Result


@click.command(
    epilog=examples(
        'dalle sample "a red heart" -n 64 -k 8 -o heart.png',
        'dalle sample "flat" --like heart.png --model runs/model',
        "dalle sample --prompts-file prompts.txt --save-dir pictures",
        "dalle sample --prompts-file prompts.jsonl --save-dir pictures --shards",
        "dalle sample --prompts-file prompts.jsonl --save-dir pictures --shards --ray auto",
        "dalle sample --from heart.png -o again.png",
    )
)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]…")
@click.option(
    "--prompts-file",
    "--texts-file",
    "texts_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Text file with one prompt per line, or .jsonl with lines such as {"prompt": "a cat", "seed": 3}.',
)
@click.option(
    "--no-grid",
    is_flag=True,
    help="Any number of prompts: write each one's pictures to --save-dir as soon as they are drawn, and no grid; the "
    "same command continues after an interruption.",
)
@click.option("--shards", is_flag=True, help="As --no-grid, but with tars (WebDataset) in place of picture files.")
@click.option(
    "--from",
    "recorded_in",
    type=click.Path(),
    metavar="FILE",
    help="Generate the pictures of this .png, .jpg or .webp again.",
)
@click.option(
    "--like",
    type=click.Path(),
    metavar="PICTURE",
    help="Draw what this picture shows, as the scorer of a model trained with image embeddings sees it.",
)
@model_option("Shipped name, checkpoint folder or hf:USER/REPO.  [default: emoji]", default=None)
@precision_option("Number format of the transformer.  [default: that of --from, or auto]", default=None)
@sampling_options
@ray_options
def sample(prompts: tuple[str, ...], **options: Any) -> None:
    """Draw pictures for prompts, best first.

    When started in several processes (accelerate launch -m dalle_mini_impl sample …), each samples the pictures of
    some of the prompts.
    """
    path = options["recorded_in"]
    check_ray_options(options["ray_address"], options["ray_workers"], options["device"])
    if options["no_grid"] or options["shards"]:
        draw_many(prompts, options)
        return
    if options["ray_address"]:
        raise UserError("expected --ray with --no-grid or --shards, got neither; add one of them and --save-dir FOLDER")
    items = few_prompts(prompts, options["texts_file"])
    if path and (items or options["like"]):
        given = "prompts" if items else "--like"
        raise UserError(f"expected {given} or --from, got both; leave {given} out, as --from reads all from the file")
    if options["like"] and not items:
        items = [{"prompt": ""}]
    if not path and not items:
        raise UserError('expected at least one prompt, got none; try: dalle sample "a red heart"')

    from tqdm import tqdm

    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.pipeline.recorded import parse_recorded
    from dalle_mini_impl.pipeline.results import grid
    from dalle_mini_impl.util.distributed import Processes
    from dalle_mini_impl.util.images import enlarge, open_picture
    from dalle_mini_impl.util.save_picture import read_metadata

    processes = Processes(options["device"])
    recorded = parse_recorded(read_metadata(path), path) if path else None
    if recorded is None:
        arguments = generate_arguments(options)
        arguments["image_embed"] = open_picture(options["like"]) if options["like"] else None
        requests = [{**arguments, **item} for item in items]
        name, scorer = options["model"] or "emoji", options["scorer"]
    else:
        requests = recorded.requests()
        name, scorer = recorded_model(recorded, options), recorded_scorer(recorded, options)
        if options["rank"] == "none":  # the pictures as they are listed, which needs no scorer
            requests = [{**request, "rank": "none"} for request in requests]
    precision = options["precision"] or (recorded.precision if recorded else "auto")
    announce_loading(name, f"to draw pictures for {len(requests)} prompts")
    dalle = DalleMini.from_pretrained(name, processes.device, precision)
    if recorded and path:
        recorded.check_source(dalle.source, path)
    use_scorer(dalle, scorer)
    check_format(dalle, requests[0], options)
    if recorded and path:
        recorded.check_scorer(dalle.scorer_source, path)
    own_requests = processes.own_items(requests)
    total = sum(progress_total(dalle, request) for request in own_requests)
    hidden = None if processes.is_main else True  # None hides the bar where standard error is no terminal
    with tqdm(total=total, unit="", disable=hidden, leave=False) as bar:
        if options["preview"] and processes.is_main:
            own_results = [generate_shown(dalle, request, bar, options) for request in own_requests]
        else:
            own_results = [*dalle.generate_many(own_requests, chunk=options["chunk"], progress=bar.update)]
    results = processes.gather(own_results)
    if not processes.is_main:
        return
    layout = {"columns": options["columns"], "scores": options["scores"]}
    if recorded and recorded.layout:
        layout = dataclasses.asdict(recorded.layout)
    zoom = options["zoom"] or (recorded.zoom if recorded else 1)
    if recorded and not recorded.layout:  # one picture that was written by --save-dir, not a grid
        (image,) = enlarge([results[0][0].image], zoom)
        write_results(results, image, results[0].metadata(zoom=zoom), options, zoom)
    else:
        metadata = {**grid_metadata(results, zoom), "layout": layout}
        write_results(results, grid(results, **layout, zoom=zoom), metadata, options, zoom)


def recorded_model(recorded: "Recorded", options: dict[str, Any]) -> str:
    """Name of the model that generated the picture of --from.

    A picture may come from anyone: what it names is neither downloaded nor read from this machine, unless it ships with
    this program.

    Raises:
        UserError: it has to be named by --model.
    """
    from dalle_mini_impl.checkpoint.find import is_shipped

    if options["model"] or is_shipped(recorded.model):
        return options["model"] or recorded.model
    shown = printable(recorded.model)
    raise UserError(
        f"expected --model, because {options['recorded_in']} was generated by {shown}, which does not ship with this "
        f"program, got none; if you trust it, add --model {shown}"
    )


def recorded_scorer(recorded: "Recorded", options: dict[str, Any]) -> str | None:
    """Name of the scorer that ranked the pictures of --from; None for the model's own, or if they are not ranked again.

    Raises:
        UserError: it has to be named by --scorer, or --scorer names one although the model's own ranked.
    """
    from dalle_mini_impl.checkpoint.find import is_shipped

    path, given = options["recorded_in"], options["scorer"]
    if recorded.scorer is None:
        if given:
            raise UserError(
                f"expected --from without --scorer, because no scorer but the model's own ranked {path}, got --scorer "
                f"{given}; leave it out"
            )
        return None
    if given or options["rank"] == "none" or is_shipped(recorded.scorer.name):
        return given or (None if options["rank"] == "none" else recorded.scorer.name)
    shown = printable(recorded.scorer.name)
    raise UserError(
        f"expected --scorer, because {path} was ranked by {shown or 'a scorer without a name'}, which does not ship "
        f"with this program, got none; if you trust it, add --scorer {shown or 'NAME'}, or draw the pictures without "
        f"their scores: --rank none"
    )


def grid_metadata(results: "list[Result]", zoom: int) -> dict[str, Any]:
    """Metadata of one grid of the pictures of several results, enough to generate all of them again."""
    metadata = results[0].metadata(zoom=zoom)
    metadata["pictures"] = [picture for result in results for picture in result.metadata()["pictures"]]
    return metadata
