"""`dalle evaluate`: what an image tokenizer, a scorer or a whole model is worth, in numbers."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.cli.evaluate.captions import captions
from dalle_mini_impl.cli.evaluate.common import evaluation_options, heading, names, set_up, write_figures
from dalle_mini_impl.cli.evaluate.paint import paint
from dalle_mini_impl.cli.evaluate.scorer import scorer
from dalle_mini_impl.cli.evaluate.zero_shot import zero_shot


@click.group()
def evaluate() -> None:
    """Measure a part or a whole model."""


evaluate.add_command(captions)
evaluate.add_command(paint)
evaluate.add_command(scorer)
evaluate.add_command(zero_shot)


@evaluate.command("image-tokenizer")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--data", default="data/emoji-store", show_default=True, help="Pictures to copy.")
@click.option("--split", type=click.Choice(["validation", "train", "all"]), default="validation", show_default=True)
@click.option("--size", type=click.IntRange(11), help="Side of the pictures.  [default: each model's own]")
@click.option("--shown", type=click.IntRange(1), default=24, show_default=True, help="Pictures on the sheet.")
@click.option("--sheet", type=click.Path(dir_okay=False), default="before-after.png", show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def image_tokenizer(models: tuple[str, ...], data: str, split: str, size: int | None, **options: Any) -> None:
    """Measure what the image tokenizer of each MODEL keeps of the same pictures.

    The data are a store of decoded pictures, a folder with .txt captions, a .jsonl or .csv file, or WebDataset tars.
    """
    from tqdm import tqdm

    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.evaluate import image_tokenizer as measure
    from dalle_mini_impl.evaluate.batches import picture_batches
    from dalle_mini_impl.evaluate.intervals import markdown
    from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.images import save_png

    device, found, identities = choose_device(options["device"]), [], []
    for model in models:
        tokenizer, identity = load_image_tokenizer(model, device)
        log = SkipLog()
        click.echo(f"image tokenizer {identity} of {model} on {data}, {split}", err=True)
        batches = picture_batches(data, split, size or tokenizer.config.image_size, log)
        with tqdm(batches, unit=" batches", delay=2, leave=False) as bar:
            found.append(measure.evaluate_image_tokenizer(model, tokenizer, bar, options["shown"]))
        identities.append(identity)
        if log.entries:
            click.echo(log.report(), err=True)
    reports = [one.report for one in found]
    click.echo(markdown([{"image tokenizer": one.name, **measure.figures(one.report)} for one in found]))
    click.echo(measure.notes(reports))
    rows = [
        {"model": one.name, "image_tokenizer": identity, **dataclasses.asdict(one.report)}
        for one, identity in zip(found, identities, strict=True)
    ]
    write_figures(options["json_file"], {"data": data, "split": split, "image_tokenizers": rows})
    click.echo(save_png(measure.sheet(found), options["sheet"]))


@evaluate.command()
@evaluation_options
@click.option("--pairs", type=click.IntRange(1), default=100, show_default=True, help="Pairs of each split.")
@click.option("--candidates", type=click.IntRange(1), default=16, show_default=True, help="Pictures a prompt.")
@click.option("--languages", default="", help="Also in these: de,no,sl,et,nl")
@click.option("--sweep", is_flag=True, help="Also try every --temperatures with every --guidances.")
@click.option("--temperatures", default="0.5,0.7,0.9,1.1", show_default=True)
@click.option("--guidances", default="1,2,3,5", show_default=True)
@click.option("--sweep-pairs", type=click.IntRange(1), default=40, show_default=True, help="Pairs of the sweep.")
@click.option("--sheet", type=click.Path(dir_okay=False), help="Write the best pictures of held-out pairs here.")
def generation(model: str, **options: Any) -> None:
    """Measure by R-precision whether MODEL draws what the prompts say.

    A picture for "a red heart, noto" is right at top-5 if real art of a red heart is among the five concepts
    it resembles most. Two judges look: EfficientNet-Lite0, and the bare pixels.
    """
    start = time.perf_counter()
    context = set_up(model, options)
    click.echo(heading(context))

    from dalle_mini_impl.evaluate import generation as measure
    from dalle_mini_impl.evaluate.intervals import table

    rows = [*measure.real_rows(context), *measure.reconstruction_rows(context)]
    click.echo(table(rows))
    drawn, held_out = measure.generation_rows(context)
    click.echo(table(drawn))
    cells = measure.sweep(context)
    if cells:
        click.echo(table([row for cell in cells for row in cell.rows]))
        best = max(cells, key=lambda cell: cell.merit)
        click.echo(f"best: temperature {best.temperature:g}, guidance {best.guidance:g}")
    facts = {**context.dalle.source, "sampling": dataclasses.asdict(context.dalle.sampling), "data": options["data"],
             "settings": dataclasses.asdict(context.settings), "rows": [dataclasses.asdict(r) for r in [*rows, *drawn]],
             "sweep": [dataclasses.asdict(cell) for cell in cells],
             "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    write_figures(options["json_file"], facts)
    if options["sheet"]:
        click.echo(write_sheet(held_out.results, options["sheet"]))


@evaluate.command()
@evaluation_options
@click.option("--pairs", type=click.IntRange(1), default=100, show_default=True, help="Pairs kept for other figures.")
@click.option("--sweep-pairs", type=click.IntRange(1), default=80, show_default=True, help="Pairs to draw for.")
@click.option("--candidates", type=click.IntRange(1), default=64, show_default=True, help="Pictures a prompt.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False), help="Also draw the curve here (extra: eval).")
def rerank(model: str, **options: Any) -> None:
    """Measure what ranking gains: R-precision of MODEL's best of 1, 2, 4 … candidates by each way to choose it.

    And what it costs: seconds for a prompt, from text to the best picture.
    """
    context = set_up(model, {**options, "languages": "", "sweep": False})
    click.echo(heading(context))

    from dalle_mini_impl.evaluate import rerank as measure

    points = measure.rerank(context)
    for judge in context.banks:
        click.echo(f"{judge}\n{measure.table(points, judge)}")
    click.echo(measure.seconds_table(points))
    if options["plot_file"]:
        click.echo(measure.plot(points, options["plot_file"]))
    facts = {**context.dalle.source, "sampling": dataclasses.asdict(context.dalle.sampling), "data": options["data"],
             "settings": dataclasses.asdict(context.settings),
             "points": [dataclasses.asdict(point) for point in points]}  # fmt: skip
    write_figures(options["json_file"], facts)


@evaluate.command()
@click.argument("model", default="emoji")
@click.argument("prompts", nargs=-1)
@click.option("--precisions", default="bf16,int8", show_default=True, help="To compare with fp32.")
@click.option("--candidates", type=click.IntRange(1), default=16, show_default=True, help="Pictures a prompt.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def precision(
    model: str,
    prompts: tuple[str, ...],
    precisions: str,
    candidates: int,
    seed: int,
    json_file: str | None,
    device: str,
) -> None:
    """Measure how far MODEL drifts in coarser arithmetic: predictions, and pictures from the same seeds."""
    from dalle_mini_impl.evaluate.precision import PROMPTS, drift, table

    found = drift(model, names(precisions), prompts or PROMPTS, candidates, seed, device)
    click.echo(table(found))
    write_figures(json_file, {"model": model, "drift": [dataclasses.asdict(one) for one in found]})


def write_sheet(results: list[Any], path: str) -> Path:
    """Write the best picture of each prompt, at twice its size, with the prompt underneath."""
    from PIL import Image

    from dalle_mini_impl.util.images import contact_sheet, save_png

    best = [result[0] for result in results]
    large = [c.image.resize((2 * c.image.width, 2 * c.image.height), Image.Resampling.BICUBIC) for c in best]
    pictures = [picture for result in results for picture in result.metadata([result[0]])["pictures"]]
    sheet = contact_sheet(large, labels=[result.prompt for result in results])
    return save_png(sheet, path, {**results[0].settings, "pictures": pictures})
