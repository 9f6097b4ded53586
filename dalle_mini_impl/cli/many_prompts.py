"""The prompts of `dalle sample`: few for a grid, or any number whose pictures are written as they are finished."""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.sampling_options import (
    announce_loading,
    check_format,
    generate_arguments,
    is_given,
    use_scorer,
)
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import dump_json, file_digest, values_digest
from dalle_mini_impl.util.text import printable, without_surrogates

if TYPE_CHECKING:
    from tqdm import tqdm

    from dalle_mini_impl.pipeline.bulk import BulkFolder
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

MAX_GRID_PROMPTS = 256
"""Most prompts whose pictures are kept in memory for a grid."""
RAY_SHARES = 4
"""Least blocks for each worker of a Ray cluster, so that they end at about the same time."""


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
    unused = ("recorded_in", "like", "preview", "json_file", "columns", "scores", "out")
    if others := [name for name in unused if is_given(name)]:
        name = {"recorded_in": "from", "json_file": "json"}.get(others[0], others[0])
        raise UserError(f"expected --no-grid or --shards without --{name}, got both; leave one out")
    if not options["save_dir"]:
        raise UserError("expected --save-dir FOLDER with --no-grid or --shards, got none; name a folder to write to")
    arguments = generate_arguments(options)

    job = Job(prompts, arguments, options)
    if options["ray_address"]:
        folder, drawn = draw_on_ray(job)
        click.echo(f"{folder.path}: {folder.count} prompts, {drawn} of them drawn now")
        return

    from dalle_mini_impl.util.distributed import Processes

    processes = Processes(options["device"])
    announce_loading(job.model, "to draw pictures")
    dalle = job.load(processes.device)
    folder = processes.decide(lambda: bulk_folder(job, dalle, processes.count))
    blocks = processes.own_items(range(folder.blocks))
    with progress_bar(sum(len(folder.indices(block)) for block in blocks), processes.is_main) as bar:
        drawn = job.draw(dalle, folder, blocks, bar.update)
    drawn = sum(processes.gather([drawn]))
    if processes.is_main:
        click.echo(f"{folder.path}: {folder.count} prompts, {drawn} of them drawn now")


@dataclass(frozen=True)
class Job:
    """What the pictures of many prompts follow from, as plain values that can be sent to another machine."""

    prompts: tuple[str, ...]
    """Of the command line."""
    arguments: dict[str, Any]
    """Of `DalleMini.generate`."""
    options: dict[str, Any]
    """Of the command."""

    @property
    def model(self) -> str:
        """Its name."""
        return self.options["model"] or "emoji"

    def all_prompts(self) -> Iterator[dict[str, Any]]:
        """See `all_prompts`."""
        return all_prompts(self.prompts, self.options["texts_file"])

    def load(self, device: str) -> "DalleMini":
        """The model, with the scorer that was named."""
        from dalle_mini_impl.pipeline.dalle_mini import DalleMini

        dalle = DalleMini.from_pretrained(self.model, device, self.options["precision"] or "auto")
        use_scorer(dalle, self.options["scorer"])
        return dalle

    def draw(
        self, dalle: "DalleMini", folder: "BulkFolder", blocks: Iterable[int], on_progress: Callable[[int], object]
    ) -> int:
        """Draw what is missing of some blocks, and return how many prompts that were."""
        from dalle_mini_impl.pipeline.bulk import draw_blocks

        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)  # otherwise the text of each one is kept, to show it once only
            return draw_blocks(
                dalle,
                self.all_prompts,
                folder,
                blocks,
                on_progress=on_progress,
                chunk=self.options["chunk"],
                **self.arguments,
            )


def progress_bar(prompts: int, is_shown: bool) -> "tqdm[Any]":
    """A bar on a terminal that counts prompts."""
    from tqdm import tqdm

    return tqdm(total=prompts, unit=" prompts", disable=None if is_shown else True, leave=False)


def draw_on_ray(job: Job) -> "tuple[BulkFolder, int]":
    """Draw on a Ray cluster, each block by any worker; the folder, and how many prompts were drawn now."""
    from dalle_mini_impl.util.ray_workers import ray_workers

    device, address, count = (job.options[name] for name in ("device", "ray_address", "ray_workers"))
    with ray_workers(partial(job.load, device), address, count, accelerators=device != "cpu") as workers:
        # A worker checks the prompts, because the model's precision depends on its machine.
        (folder,) = workers.map(partial(bulk_folder, job), [RAY_SHARES * workers.count])
        missing = [block for block in range(folder.blocks) if not folder.is_finished(block)]
        with progress_bar(sum(len(folder.indices(block)) for block in missing), True) as bar:
            drawn = 0
            for prompts, drawn_now in workers.map(partial(draw_block, job, folder), missing):
                bar.update(prompts)
                drawn += drawn_now
    return folder, drawn


def draw_block(job: Job, folder: "BulkFolder", dalle: "DalleMini", block: int) -> tuple[int, int]:
    """Draw what is missing of a block; the number of its prompts, and how many of them were drawn now."""
    from dalle_mini_impl.sampling.generate import no_progress

    return len(folder.indices(block)), job.draw(dalle, folder, [block], no_progress)


def bulk_folder(job: Job, dalle: "DalleMini", shares: int) -> "BulkFolder":
    """Check all prompts, and make or continue the folder for their pictures.

    Raises:
        UserError: there is no prompt, a line has a setting that is out of range, or the folder holds something else.
    """
    from dalle_mini_impl.config.yaml_io import to_dict
    from dalle_mini_impl.pipeline.bulk import BLOCK, BulkFolder
    from dalle_mini_impl.sampling.next_ids import validate_sampling

    arguments, options = job.arguments, job.options
    check_format(dalle, arguments, options)
    count = 0
    for count, item in enumerate(job.all_prompts(), 1):
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
        "prompts": values_digest([job.prompts, file_digest(file) if file else ""]),
    }
    return BulkFolder(
        path=options["save_dir"],
        count=count,
        as_tar=options["shards"],
        zoom=options["zoom"] or 1,
        format=options["format"],
        block=min(BLOCK, -(-count // shares)),
    ).prepare(settings)
