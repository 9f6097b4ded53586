"""`dalle evaluate image-tokenizer`: reconstruction quality, codebook use and speed of image tokenizers."""

import dataclasses
from functools import partial
from pathlib import Path

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES, data_option, split_option
from dalle_mini_impl.cli.options import (
    Count,
    device_option,
    echo_text,
    examples,
    json_option,
    keep_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE


@click.command(
    "image-tokenizer",
    epilog=examples(
        "dalle evaluate image-tokenizer emoji --data my_pictures --split all",
        "dalle evaluate image-tokenizer runs/mine/model emoji --size 64 --sheet compare.png",
    ),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@data_option("Picture store, or pictures as for dalle data inspect.")
@split_option(("validation", "train", "all"))
@click.option("--size", type=Count(11), help="Side of the pictures in pixels.  [default: each model's own]")
@keep_option(24, "Example pictures on the sheet.")
@click.option("--sheet", type=PICTURE_FILE, default="before-after.png", show_default=True, help="Sheet of examples.")
@json_option(FIGURES)
@device_option()
def image_tokenizer(
    models: tuple[str, ...],
    data: str,
    split: str,
    size: int | None,
    keep: int,
    sheet: Path,
    json_file: str | None,
    device: str,
) -> None:
    """Measure how well the image tokenizer of each MODEL reconstructs the same pictures.

    The data are a picture store, a folder of pictures with .txt captions, a .jsonl or .csv file, or WebDataset tars.
    Needs the extra eval.
    """
    from tqdm import tqdm

    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.evaluate.batches import picture_batches
    from dalle_mini_impl.evaluate.image_tokenizer import (
        evaluate_image_tokenizer,
        examples_sheet,
        table_cells,
        table_notes,
    )
    from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.save_picture import save_picture
    from dalle_mini_impl.util.tables import markdown_table

    echo = partial(echo_text, json_file=json_file)
    device = choose_device(device)
    evaluations = []
    identities = []
    for model in models:
        tokenizer, identity = load_image_tokenizer(model, device)
        log = SkipLog()
        click.echo(f"image tokenizer {identity} of {model} on {data}, {split}", err=True)
        batches = picture_batches(data, split, (size, size) if size else tokenizer.config.size, log)
        with tqdm(batches, unit=" batches", delay=2, leave=False) as bar:
            evaluations.append(evaluate_image_tokenizer(model, tokenizer, bar, keep))
        identities.append(identity)
        if log.entries:
            click.echo(log.report(), err=True)
    reports = [evaluation.report for evaluation in evaluations]
    echo(markdown_table([{"image tokenizer": one.name, **table_cells(one.report)} for one in evaluations]))
    echo(table_notes(reports))
    rows = [
        {"model": one.name, "image_tokenizer": identity, **dataclasses.asdict(one.report)}
        for one, identity in zip(evaluations, identities, strict=True)
    ]
    write_json_file(json_file, {"data": data, "split": split, "image_tokenizers": rows})
    echo(save_picture(examples_sheet(evaluations), sheet))
