"""The report of a whole training: one page with everything in it, written anew after each stage."""

import shlex
from collections.abc import Sequence

import numpy as np

from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import PictureStore, skipped_text
from dalle_mini_impl.evaluate.reference_pictures import first_caption
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.train.replay import own_pictures
from dalle_mini_impl.train.whole import page
from dalle_mini_impl.train.whole.advice import FEW_HELD_OUT, advise, last
from dalle_mini_impl.train.whole.charts import line_chart
from dalle_mini_impl.train.whole.folder import Record, RunFolder, read_log
from dalle_mini_impl.train.whole.pictures import PictureFacts
from dalle_mini_impl.train.whole.plan import duration
from dalle_mini_impl.train.whole.results import CANDIDATES, KINDS, SHOWN, SPLITS, Results, sample_command, spread
from dalle_mini_impl.train.whole.settings import TRAINED
from dalle_mini_impl.util.files import replace_file
from dalle_mini_impl.util.images import open_picture, to_images
from dalle_mini_impl.util.text import printable

DEFAULT_SIZE = (64, 64)
"""Of the pictures before there is an image tokenizer."""
SEEN_PICTURES = 24
"""Pictures shown as the model sees them."""
RECONSTRUCTED = 12
"""Held-out pictures shown beside their reconstructions."""
SHOWN_CAPTIONS = {"seen": 8, "held out": 6, "new": 6}
"""Captions of each kind that are shown with what was drawn for them."""
TITLES = {
    "seen": "Drawn for captions of the set",
    "held out": "Drawn for captions of pictures it has never seen",
    "new": "Drawn for new combinations of words",
}
KIND_NAMES = {"seen": "of the set", "held out": "held out"}
"""Kinds of captions, in the table."""
CHARTS = (
    (
        "image_tokenizer",
        "Image tokenizer: likeness of reconstructions",
        "dB",
        {"training": "psnr", "held out": "validation_psnr"},
    ),
    ("transformer", "Transformer: loss", "nats", {"training": "image", "held out": "validation_image"}),
    ("scorer", "Scorer: loss", "nats", {"training": "loss"}),
    (
        "scorer",
        "Scorer: held-out pictures found by their caption",
        "share",
        {"first": "text_to_image_at_1", "first five": "text_to_image_at_5"},
    ),
    (
        "prior",
        "Prior: likeness of drawn and true image embeddings",
        "cosine",
        {"drawn": "cosine", "of the caption": "text_cosine"},
    ),
)
"""Stage, title, unit, and name -> figure of the log."""


def write_report(
    folder: RunFolder,
    record: Record,
    stores: dict[str, PictureStore],
    facts: PictureFacts,
    results: Results | None = None,
) -> None:
    """Write the page with what is known so far.

    Args:
        folder: of the run.
        record: what is done.
        stores: the pictures by split.
        facts: about them.
        results: of the finished model; None before.

    Raises:
        UserError: the page cannot be written.
    """
    logs = {stage: read_log(folder.log(stage)) for stage in TRAINED}
    tokenizer = None
    if (folder.model / "image_tokenizer.safetensors").is_file():
        tokenizer, _ = load_image_tokenizer(folder.model)
    size = tokenizer.config.size if tokenizer else DEFAULT_SIZE
    source = printable(record.request["source"])
    step_pictures = own_pictures(load(TransformerRun, folder.config("transformer"))) if results else 0
    advice = advise(record, facts, logs, min(size), step_pictures) if results else []
    sections = [
        page.paragraph("" if results else f"Unfinished: {progress(record)}. Load the page again after each stage."),
        *([drawn_section(kind, results) for kind in KINDS] if results else [latest_sheet(folder)]),
        page.section("Measured", figures_table(record, facts, logs)),
        page.section("What to try next", page.listing(advice) if results else ""),
        page.section("Commands", page.commands(command_lines(folder, record))),
        page.section(
            "The pictures as the model sees them",
            page.listing([line.strip() for line in record.data["lines"]]),
            page.paragraph(f"{facts.train:,} to train on, {facts.held_out:,} held out to measure with."),
            seen_pictures(stores["train"], size),
        ),
        reconstructions(stores["validation"], tokenizer) if tokenizer else "",
        page.section("Learning curves", page.group("sets", charts(logs))),
        page.section("Skipped", page.listing(skipped_text(folder.store).splitlines())),
        page.section("Time", time_table(record)),
        page.section("Settings", *settings(folder)),
    ]
    with replace_file(folder.report) as temporary:
        temporary.write_text(page.page(f"A model of {source}", sections), encoding="utf-8")


def progress(record: Record) -> str:
    """What is done so far, in words."""
    done = [stage.replace("_", " ") for stage, kept in record.stages.items() if kept.result]
    return f"{', '.join(done)} done" if done else "nothing is done yet"


def drawn_section(kind: str, results: Results) -> str:
    """What was drawn for one kind of captions."""
    figures = [
        page.figure(
            page.group("row", (page.picture(image, f"drawn for: {printable(one.caption)}") for image in one.pictures)),
            printable(one.caption),
        )
        for one in results.drawn[kind][: SHOWN_CAPTIONS[kind]]
    ]
    chosen = page.paragraph(f"The best {SHOWN} of {CANDIDATES} for each." if figures else "")
    return page.section(TITLES[kind], chosen, page.group("sets", figures))


def latest_sheet(folder: RunFolder) -> str:
    """The latest sheet of samples of the transformer, while there is nothing better."""
    sheets = sorted((folder.path / "transformer").glob("samples-*.png"))
    if not sheets:
        return ""
    return page.section("First samples", page.picture(open_picture(sheets[-1]), "samples while training"))


def figures_table(record: Record, facts: PictureFacts, logs: dict[str, list[dict[str, float]]]) -> str:
    """What was measured, with its meaning."""
    rows = [("figure", "value", "meaning")]
    psnr = last(logs["image_tokenizer"], "validation_psnr")
    if psnr is not None:
        rows.append(("reconstruction", f"{psnr:.1f} dB", "likeness of held-out pictures after encoding and decoding"))
    loss = last(logs["transformer"], "validation_image")
    if loss is not None:
        rows.append(("held-out loss", f"{loss:.2f} nats", "per image id; less is better"))
    found = last(logs["scorer"], "text_to_image_at_1")
    if found is not None and facts.held_out >= FEW_HELD_OUT:
        rows.append(("scorer", f"{found:.0%}", "held-out pictures that it finds by their caption"))
    cosine = last(logs["prior"], "cosine")
    if cosine is not None:
        rows.append(("prior", f"{cosine:.2f}", "mean cosine of drawn image embeddings with those of held-out pictures"))
    for kind, nats in record.figures.get("caption_nats", {}).items():
        rows.append(
            (
                f"caption, {KIND_NAMES[kind]}",
                f"{nats:.1f} nats",
                "by which a picture is likelier with its own caption",
            )
        )
    measured = record.figures.get("r_precision", {})
    for kind in SPLITS:
        if kind in measured:
            one = measured[kind]
            meaning = (
                f"drawn pictures nearest to the real one, or among the five nearest, of {measured['captions']:,}; "
                f"{one['captions']} captions, best of {CANDIDATES}"
            )
            rows.append((f"R-precision, {KIND_NAMES[kind]}", f"{one['top_1']:.2f} / {one['top_5']:.2f}", meaning))
    missing = record.figures.get("without_judge", "")
    if missing:
        missing = f"R-precision is not measured, and sampling settings are not chosen: {missing}"
    chosen = record.figures.get("sampling_text", "")
    return "".join(
        [
            page.table(rows) if len(rows) > 1 else "",
            page.paragraph(
                f"Pictures held out: only {facts.held_out}, so figures of them mean little."
                if len(rows) > 1 and facts.held_out < FEW_HELD_OUT
                else ""
            ),
            page.paragraph(missing),
            page.details("Choice of the sampling settings", chosen) if chosen else "",
        ]
    )


def command_lines(folder: RunFolder, record: Record) -> list[str]:
    """Commands to type."""
    model = shlex.quote(str(folder.model))
    lines = []
    if record.figures:
        caption = shlex.quote(record.figures["caption"])
        lines = [
            sample_command(folder, record.figures["caption"]),
            f"dalle sample {caption} --model {model} --candidates 64 --keep 8 --out grid.png",
            f"dalle complete PICTURE {caption} --model {model} --keep-rows 4",
            f"dalle info {model}",
        ]
    stages = [
        f"dalle train {name.replace('_', '-')} --config {shlex.quote(str(folder.config(name)))}"
        for name, kept in record.stages.items()
        if kept.config
    ]
    return [*lines, *(["# the stages one by one, with the same result:"] if stages else []), *stages]


def seen_pictures(store: PictureStore, size: tuple[int, int]) -> str:
    """Some training pictures at the model's size."""
    captions = [(index, first_caption(entry).text) for index, entry in enumerate(store.entries)]
    chosen = spread(captions, SEEN_PICTURES)
    images = to_images(pixels_on_white(store.take(np.array([index for index, _ in chosen])), size))
    return page.group(
        "pictures",
        (
            page.figure(page.picture(image, printable(text)), printable(text))
            for image, (_, text) in zip(images, chosen, strict=True)
        ),
    )


def reconstructions(store: PictureStore, tokenizer: ImageTokenizer) -> str:
    """Held-out pictures beside what the image tokenizer makes of them."""
    rows = np.arange(min(RECONSTRUCTED, len(store)))
    pixels = pixels_on_white(store.take(rows), tokenizer.config.size)
    before, after = to_images(pixels), to_images(tokenizer.decode(tokenizer.encode(pixels)))
    figures = []
    for row, original, decoded in zip(rows, before, after, strict=True):
        text = printable(first_caption(store.entries[row]).text)
        pair = (page.picture(original, f"original: {text}"), page.picture(decoded, f"reconstruction: {text}"))
        figures.append(page.figure(page.group("pair", pair), text))
    return page.section(
        "Held-out pictures and their reconstructions",
        page.paragraph("Nothing can be drawn better than the image tokenizer reconstructs it."),
        page.group("pictures", figures),
    )


def charts(logs: dict[str, list[dict[str, float]]]) -> list[str]:
    """The learning curves as far as there are any."""
    drawn = []
    for stage, title, unit, names in CHARTS:
        lines = {
            name: [(line["step"] + 1, line[figure]) for line in logs[stage] if figure in line]
            for name, figure in names.items()
        }
        if chart := line_chart(title, lines, unit):
            drawn.append(page.figure(chart, title))
    return drawn


def time_table(record: Record) -> str:
    """What took how long."""
    rows: list[Sequence[str]] = [("", "planned", "taken")]
    names = {"pictures": "reading the pictures", "measuring": "measuring the speed", "report": "samples and report"}
    if "pictures" in record.seconds:
        rows.append((names["pictures"], "", duration(record.seconds["pictures"])))
    for stage, kept in record.stages.items():
        if kept.result:
            planned = duration(kept.planned) if kept.planned else ""
            rows.append((stage.replace("_", " "), planned, duration(kept.seconds)))
    rows += [
        (names[name], "", duration(record.seconds[name])) for name in ("measuring", "report") if name in record.seconds
    ]
    rows.append(("together", duration(60 * record.request["minutes"]), duration(record.spent)))
    return page.table(rows)


def settings(folder: RunFolder) -> list[str]:
    """The config files."""
    paths = sorted((folder.path / "configs").glob("*.yaml"))
    return [page.details(path.name, path.read_text(encoding="utf-8").rstrip("\n")) for path in paths]
