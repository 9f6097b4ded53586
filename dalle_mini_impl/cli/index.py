"""`dalle index`: makes the pictures of a folder searchable."""

from pathlib import Path

import click

from dalle_mini_impl.util.errors import UserError


@click.command()
@click.argument("pictures", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the index.  [default: DIR/.dalle-index]")
@click.option("--scorer", default="", help="emoji, FOLDER, hf:… or open_clip:….  [default: the index's, or emoji]")
@click.option("--rebuild", is_flag=True, help="Begin anew, in place of an index that is there.")
@click.option("--export", "export_to", type=click.Path(path_type=Path), help="Also write clip-retrieval's layout here.")
@click.option("--faiss", is_flag=True, help="With --export: also a faiss index of the same rows (extra: faiss).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def index(
    pictures: Path, out: Path | None, scorer: str, rebuild: bool, export_to: Path | None, faiss: bool, device: str
) -> None:
    """Make the pictures below DIR searchable, or bring their index up to date.

    Only files that are new or changed are read; a run that was stopped goes on where it was.
    """
    if not pictures.is_dir():
        raise UserError(f"{pictures} is no folder; name one with pictures in it")
    if faiss and not export_to:
        raise UserError("--faiss came without --export; name the folder it is to be written to")

    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.search.export import export, export_faiss
    from dalle_mini_impl.search.index import INSIDE, ImageIndex
    from dalle_mini_impl.search.store import DATABASE
    from dalle_mini_impl.util.devices import choose_device

    folder, device, log = out or pictures / INSIDE, choose_device(device), SkipLog()
    if rebuild or not (folder / DATABASE).is_file():
        image_index = ImageIndex.create(folder, scorer or "emoji", device)
    else:
        image_index = ImageIndex.open(folder, scorer, device)
    click.echo(f"indexing {pictures}", err=True)
    changes = image_index.update(pictures, log)
    if log.entries:
        click.echo(log.report(), err=True)
    click.echo(
        f"{changes.embedded} new, {changes.known} moved or copied, {changes.unchanged} unchanged, "
        f"{changes.unreadable} unreadable, {changes.gone} gone; {len(image_index)} different pictures can be found"
    )
    if export_to:
        written = export(image_index, export_to)
        if faiss:
            written.append(export_faiss(image_index, export_to))
        for path in written:
            click.echo(str(path))
    click.echo(str(folder))
