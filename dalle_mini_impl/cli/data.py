"""`dalle data`: builds the emoji set, and inspects a user's own pictures."""

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Build the emoji set, or look at your own pictures."""


@data.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the set to.")
@click.option("--size", type=click.IntRange(16, 1024), default=128, show_default=True, help="Side in pixels.")
@click.option(
    "--art",
    type=click.Choice(["all", "openmoji"]),
    default="all",
    show_default=True,
    help="all: Noto, Twemoji and Fluent, captions in 24 languages, fetched with npm. "
    "openmoji: OpenMoji (CC-BY-SA-4.0), captions in 12 languages, needs pip only.",
)
def emoji(out: Path, size: int, art: str) -> None:
    """Build the captioned emoji set as WebDataset tars."""
    if art == "openmoji":
        from dalle_mini_impl.data.emoji.openmoji import build_openmoji as build
    else:
        from dalle_mini_impl.data.emoji.build import build

    from dalle_mini_impl.util.errors import UserError

    # The folder is replaced as a whole, so it must not be one that holds anything else.
    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no emoji set; building would delete it; name a new folder")
    click.echo(f"building the emoji set ({art}) at {size} px")
    manifest = build(out, size)
    counts = manifest["counts"]
    click.echo(
        f"{counts['pictures']} pictures of {counts['concepts']} emoji, {counts['captions']} captions in "
        f"{len(manifest['languages'])} languages"
    )
    for kind in ("by_vendor", "by_split", "by_kind"):
        click.echo(f"  {', '.join(f'{name} {count}' for name, count in sorted(counts[kind].items()))}")
    click.echo(out)


@data.command()
@click.argument("source")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("inspect.png"),
    show_default=True,
    help="Where to write the contact sheet.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect(source: str, sheet: Path, as_json: bool) -> None:
    """Report what SOURCE holds and what in it cannot be used.

    SOURCE is a folder of pictures with .txt captions, a .jsonl or .csv file, or WebDataset tars.
    """
    import json
    from dataclasses import asdict

    from tqdm import tqdm

    from dalle_mini_impl.data.inspect import inspect_pairs, report_text
    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.data.readers import read_pairs
    from dalle_mini_impl.util.errors import UserError
    from dalle_mini_impl.util.images import contact_sheet, save_png

    log = SkipLog()
    pairs = read_pairs(source, log)
    click.echo(f"reading {source}", err=True)
    report, sample = inspect_pairs(tqdm(pairs, desc="inspecting", unit=" pictures", delay=2))
    if report is None:
        click.echo(log.report(), err=True)
        raise UserError(f"{source} has no usable picture; expected pictures with captions; see above what is wrong")
    save_png(contact_sheet([image for _, image in sample], labels=[text for text, _ in sample]), sheet)
    if as_json:
        skipped = [{"name": name, "reason": reason} for name, reason in log.entries]
        click.echo(json.dumps({**asdict(report), "skipped": skipped, "sheet": str(sheet)}, ensure_ascii=False))
    else:
        click.echo(report_text(report))
        click.echo(log.report() or "nothing was skipped")
        click.echo(sheet)
