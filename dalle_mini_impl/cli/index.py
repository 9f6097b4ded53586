"""`dalle index`: make the pictures of a folder, or of tars, searchable."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dalle_mini_impl.cli.options import (
    check_ray_options,
    device_option,
    examples,
    out_option,
    ray_options,
    scorer_option,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable

if TYPE_CHECKING:
    from dalle_mini_impl.search.update import Changes


@click.command(
    epilog=examples(
        "dalle index photos",
        "dalle index s3://bucket/photos --out photos.index",
        "dalle index 's3://bucket/set/{00000..00331}.tar' --out set.index",
        "dalle index photos --scorer hf:openai/clip-vit-base-patch32 --out photos.index",
    )
)
@click.argument("source", type=click.Path())
@out_option("Folder of the index.  [default: SOURCE/.dalle-index]", folder=True)
@scorer_option("Scorer, named as for dalle classify.  [default: the index's if included, or emoji]", default=None)
@click.option("--rebuild", is_flag=True, help="Replace an existing index when the new one is whole.")
@click.option(
    "--export", "export_folder", type=click.Path(path_type=Path), help="Folder for a copy in clip-retrieval's layout."
)
@click.option("--faiss", is_flag=True, help="With --export: also a faiss index (extra: faiss).")
@device_option()
@ray_options
def index(
    source: str,
    out: Path | None,
    scorer: str | None,
    rebuild: bool,
    export_folder: Path | None,
    faiss: bool,
    device: str,
    ray_address: str | None,
    ray_workers: int | None,
) -> None:
    """Make the pictures of a folder, or of tars, searchable.

    SOURCE is a folder, in which pictures are found at any depth, or else tars; or it is a tar or a pattern such as
    set-{000..007}.tar. All may be at an address such as s3://bucket/photos, which needs --out, as a pattern does. An
    existing index is updated: only new and changed files are read. A run that was stopped continues where it was.
    """
    check_ray_options(ray_address, ray_workers, device)
    folder = folder_of_index(source, out)
    if faiss and not export_folder:
        raise UserError("expected --export with --faiss, got --faiss alone; add --export FOLDER")

    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.search.embedding import make_worker
    from dalle_mini_impl.search.export import check_export, export_clip_retrieval, export_faiss
    from dalle_mini_impl.search.index import ImageIndex
    from dalle_mini_impl.search.integrity import DATABASE
    from dalle_mini_impl.search.listing import check_source
    from dalle_mini_impl.search.scorers import absolute_scorer_name, recorded_scorer
    from dalle_mini_impl.search.store import DamagedIndexError
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.ray_workers import ray_workers as open_workers

    check_source(source)
    own_device = choose_device("cpu" if ray_address else device)
    if export_folder:
        check_export(export_folder, with_faiss=faiss)
    log = SkipLog()
    exists = (folder / DATABASE).is_file()
    if exists and scorer is None:
        try:
            scorer = recorded_scorer(folder)
        except DamagedIndexError:
            if not rebuild:
                raise
            scorer = None  # nothing that it says can be relied on
    scorer = scorer or "emoji"
    make = partial(make_worker, absolute_scorer_name(scorer), device)
    accelerators = device != "cpu"
    with (
        open_workers(make, ray_address, ray_workers, accelerators=accelerators) if ray_address else nullcontext()
    ) as workers:
        if rebuild:
            click.echo(f"indexing {printable(source)} with {scorer}", err=True)
            image_index, changes = ImageIndex.rebuild(folder, scorer, source, log, own_device, workers)
        else:
            if exists:
                image_index = ImageIndex.open(folder, scorer, own_device)
            else:
                image_index = ImageIndex.create(folder, scorer, own_device, replace=False)
            click.echo(f"indexing {printable(source)}", err=True)
            changes = image_index.update(source, log, workers)
    if log.entries:
        click.echo(log.report(), err=True)
    for line in notes(changes):
        click.echo(line, err=True)
    click.echo(
        f"{changes.embedded} new, {changes.reused} moved or copied, {changes.unchanged} unchanged, "
        f"{changes.unreadable} unreadable, {changes.removed} removed; "
        f"{len(image_index)} different pictures can be found"
    )
    if export_folder:
        written = export_clip_retrieval(image_index, export_folder)
        if faiss:
            written.append(export_faiss(image_index, export_folder))
        for path in written:
            click.echo(str(path))
    click.echo(str(folder))


def folder_of_index(source: str, out: Path | None) -> Path:
    """Where the index of a source is.

    Raises:
        UserError: it has to be named.
    """
    from dalle_mini_impl.data.remote import is_address
    from dalle_mini_impl.search.store import DEFAULT_FOLDER

    if out is not None:
        return out
    if is_address(source):
        raise UserError(
            f"expected --out with the address {source}, got none; name a folder of this machine for the index"
        )
    if not Path(source).is_dir():
        raise UserError(
            f"expected a folder of pictures, or --out FOLDER with tars, got {source}; check the path, or add --out"
        )
    return Path(source) / DEFAULT_FOLDER


def notes(changes: "Changes") -> list[str]:
    """What a user must know of an update beside its numbers."""
    from dalle_mini_impl.util.images import unreadable_format

    lines = []
    for ending, count in sorted(changes.unsupported.items()):
        lines.append(f"not indexed: {count} × {unreadable_format('x' + ending).partition(': ')[2]}")
    if changes.restored:
        lines.append(f"{changes.restored} vectors were lost or damaged and were restored")
    if changes.lost:
        lines.append(
            f"the vectors of {changes.lost} pictures are lost; the pictures are found again when they can be read"
        )
    if changes.kept:
        lines.append(f"{changes.kept} could not be looked at and were kept; --rebuild forgets them")
    return lines
