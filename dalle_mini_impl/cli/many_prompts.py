"""The prompts of `dalle sample`: few for a grid, or any number whose pictures are written as they are finished."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.sampling_options import announce_loading, generate_arguments, is_given, use_scorer
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import dump_json, file_digest, values_digest
from dalle_mini_impl.util.text import printable, without_surrogates

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.bulk import BulkFolder
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

MAX_GRID_PROMPTS = 256
"""Most prompts whose pictures are kept in memory for a grid."""


def all_prompts(prompts: tuple[str, ...], file: Path | None, *, allow_pipe: bool = False) -> Iterator[dict[str, Any]]:
    """Prompts of the command line, then those of the file, as arguments of `DalleMini.generate`; no empty ones."""
    from dalle_mini_impl.pipeline.prompts_file import read_prompts

    yield from ({"prompt": text} for prompt in prompts if (text := without_surrogates(prompt)).strip())
    if file:
        yield from read_prompts(file, allow_pipe=allow_pipe)


def few_prompts(prompts: tuple[str, ...], file: Path | None) -> list[dict[str, Any]]:
    """Prompts for a grid, each once.

    Raises:
        UserError: there are too many, or they differ in settings that a grid records once for all its pictures.
    """
    items = list(itertools.islice(all_prompts(prompts, file, allow_pipe=True), MAX_GRID_PROMPTS + 1))
    if len(items) > MAX_GRID_PROMPTS:
        raise UserError(
            f"expected at most {MAX_GRID_PROMPTS} prompts for a grid, got more; add --no-grid and --save-dir FOLDER, "
            f"which take any number"
        )
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    if different := [name for name in names if len({item.get(name) for item in items}) > 1]:
        raise UserError(
            f"expected prompts with the same {different[0]} for a grid, got several; add --no-grid and --save-dir "
            f"FOLDER, or give --{different[0].replace('_', '-')} for all"
        )
    return list({dump_json(item): item for item in items}.values())


def draw_many(prompts: tuple[str, ...], options: dict[str, Any]) -> None:
    """Write the pictures of any number of prompts as they are finished; see `pipeline.bulk`.

    Raises:
        UserError: an option does not go with many prompts, or there is no folder for the pictures.
    """
    unused = ("recorded_in", "preview", "json_file", "columns", "scores", "out")
    if others := [name for name in unused if is_given(name)]:
        name = {"recorded_in": "from", "json_file": "json"}.get(others[0], others[0])
        raise UserError(f"expected --no-grid or --shards without --{name}, got both; leave one out")
    if not options["save_dir"]:
        raise UserError("expected --save-dir FOLDER with --no-grid or --shards, got none; name a folder to write to")
    arguments = generate_arguments(options)

    from tqdm import tqdm

    from dalle_mini_impl.pipeline.bulk import draw_blocks
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.distributed import Processes

    file = options["texts_file"]
    processes = Processes(options["device"])
    name = options["model"] or "emoji"
    announce_loading(name, "to draw pictures")
    dalle = DalleMini.from_pretrained(name, processes.device, options["precision"] or "auto")
    use_scorer(dalle, options["scorer"])
    folder = processes.decide(lambda: bulk_folder(dalle, prompts, arguments, options, processes.count))
    blocks = processes.own_items(range(folder.blocks))
    total = sum(len(folder.indices(block)) for block in blocks)
    hidden = None if processes.is_main else True
    with tqdm(total=total, unit=" prompts", disable=hidden, leave=False) as bar, warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # otherwise the text of each one is kept, to show it once only
        drawn = draw_blocks(
            dalle,
            lambda: all_prompts(prompts, file),
            folder,
            blocks,
            on_progress=bar.update,
            chunk=options["chunk"],
            **arguments,
        )
    drawn = sum(processes.gather([drawn]))
    if processes.is_main:
        click.echo(f"{folder.path}: {folder.count} prompts, {drawn} of them drawn now")


def bulk_folder(
    dalle: "DalleMini", prompts: tuple[str, ...], arguments: dict[str, Any], options: dict[str, Any], processes: int
) -> "BulkFolder":
    """Check all prompts, and make or continue the folder for their pictures.

    Raises:
        UserError: there is no prompt, a line has a setting that is out of range, or the folder holds something else.
    """
    from dalle_mini_impl.config.yaml_io import to_dict
    from dalle_mini_impl.pipeline.bulk import BLOCK, BulkFolder
    from dalle_mini_impl.sampling.next_ids import validate_sampling

    count = 0
    for count, item in enumerate(all_prompts(prompts, options["texts_file"]), 1):
        if count == 1 or len(item) > 1:
            try:
                request = dalle.request(**{**arguments, **item, "prompt": ""})
                validate_sampling(request.sampling, dalle.stream.config.image_vocab)
            except UserError as error:
                raise UserError(f"prompt {count}, {printable(item['prompt'][:40])!r}: {error}") from error
    if not count:
        raise UserError("expected at least one prompt, got none; give some, or --prompts-file FILE")
    file = options["texts_file"]
    settings = {
        "checkpoint": dalle.source["checkpoint"],
        "precision": dalle.source["precision"],
        "scorer": dalle.scorer_source,
        "recommended": to_dict(dalle.sampling),
        "options": arguments,
        "prompts": values_digest([prompts, file_digest(file) if file else ""]),
    }
    return BulkFolder(
        path=options["save_dir"],
        count=count,
        as_tar=options["shards"],
        zoom=options["zoom"] or 1,
        block=min(BLOCK, -(-count // processes)),
    ).prepare(settings)
