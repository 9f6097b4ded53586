"""`dalle index`: make the pictures of a folder searchable."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dalle_mini_impl.cli.options import device_option, examples, out_option, scorer_option
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable

if TYPE_CHECKING:
    from dalle_mini_impl.search.update import Changes


@click.command(
    epilog=examples(
        "dalle index photos",
        "dalle index s3://bucket/photos --out photos.index",
        "dalle index photos --scorer hf:openai/clip-vit-base-patch32 --out photos.index",
    )
)
@click.argument("source", type=click.Path(), metavar="DIR")
@out_option("Folder of the index.  [default: DIR/.dalle-index]", folder=True)
@scorer_option("Scorer, named as for dalle classify.  [default: the index's if included, or emoji]", default=None)
@click.option("--rebuild", is_flag=True, help="Replace an existing index when the new one is whole.")
@click.option(
    "--export", "export_folder", type=click.Path(path_type=Path), help="Folder for a copy in clip-retrieval's layout."
)
@click.option("--faiss", is_flag=True, help="With --export: also a faiss index (extra: faiss).")
@device_option()
def index(
    source: str,
    out: Path | None,
    scorer: str | None,
    rebuild: bool,
    export_folder: Path | None,
    faiss: bool,
    device: str,
) -> None:
    """Make the pictures of a folder searchable.

    DIR is a folder here, or at an address such as s3://bucket/photos, which needs --out. Pictures are found in it at
    any depth. An existing index is updated: only new and changed files are read. A run that was stopped continues where
    it was.
    """
    from dalle_mini_impl.data.remote import is_address

    if is_address(source) and out is None:
        raise UserError(
            f"expected --out with the address {source}, got none; name a folder of this machine for the index"
        )
    if not is_address(source) and not Path(source).is_dir():
        raise UserError(f"expected a folder of pictures, got {source}; check the path")
    if faiss and not export_folder:
        raise UserError("expected --export with --faiss, got --faiss alone; add --export FOLDER")

    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.search.export import check_export, export_clip_retrieval, export_faiss
    from dalle_mini_impl.search.index import ImageIndex
    from dalle_mini_impl.search.integrity import DATABASE
    from dalle_mini_impl.search.scorers import recorded_scorer
    from dalle_mini_impl.search.store import DEFAULT_FOLDER, DamagedIndexError
    from dalle_mini_impl.util.devices import choose_device

    folder = out or Path(source) / DEFAULT_FOLDER
    device = choose_device(device)
    if export_folder:
        check_export(export_folder, with_faiss=faiss)
    log = SkipLog()
    exists = (folder / DATABASE).is_file()
    if rebuild and exists and scorer is None:
        try:
            scorer = recorded_scorer(folder)
        except DamagedIndexError:  # nothing that it says can be relied on
            scorer = None
    if rebuild:
        scorer = scorer or "emoji"
        click.echo(f"indexing {printable(source)} with {scorer}", err=True)
        image_index, changes = ImageIndex.rebuild(folder, scorer, source, log, device)
    else:
        if exists:
            image_index = ImageIndex.open(folder, scorer or "", device)
        else:
            image_index = ImageIndex.create(folder, scorer or "emoji", device, replace=False)
        click.echo(f"indexing {printable(source)}", err=True)
        changes = image_index.update(source, log)
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
