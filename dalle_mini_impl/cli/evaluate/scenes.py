"""`dalle evaluate scenes`: whether pictures show the objects, numbers, colours and places of their captions."""

import contextlib
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES, data_option
from dalle_mini_impl.cli.options import (
    CommaSeparated,
    Count,
    candidates_option,
    device_option,
    echo_text,
    examples,
    json_option,
    seed_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE
from dalle_mini_impl.config.scenes import JUDGED_TASKS, LANGUAGES
from dalle_mini_impl.util.tables import aligned_table

if TYPE_CHECKING:
    from dalle_mini_impl.evaluate.scenes import DrawnScene, SceneRow

SHOWN_SCENES = 4
"""Scenes of each task on the sheet."""
SHOWN_PICTURES = 4
"""Drawn pictures of each."""


@click.command(
    epilog=examples(
        "dalle evaluate scenes emoji --scenes 5 --candidates 4",
        "dalle evaluate scenes runs/mine/model --languages en,de --sheet scenes.png --json figures.json",
    )
)
@click.argument("model", default="emoji")
@data_option("Store or source of the emoji set, of which scenes are composed.")
@click.option("--scenes", "count", type=Count(), default=20, show_default=True, help="Scenes of each task and split.")
@candidates_option(16, "Pictures per caption.")
@click.option(
    "--task",
    "tasks",
    type=click.Choice(JUDGED_TASKS),
    multiple=True,
    default=JUDGED_TASKS,
    help="Of scenes; may repeat.  [all that can be judged]",
)
@click.option(
    "--languages",
    type=CommaSeparated(click.Choice(LANGUAGES), minimum=1),
    default="en",
    show_default=True,
    metavar="A,B",
    help=f"Of the captions: {', '.join(LANGUAGES)}.",
)
@click.option("--sheet", type=PICTURE_FILE, help="Sheet of some scenes: composed, then drawn, best first.")
@seed_option("Determines scenes and pictures.")
@json_option(FIGURES)
@device_option()
def scenes(
    model: str,
    data: str,
    count: int,
    candidates: int,
    tasks: tuple[str, ...],
    languages: tuple[str, ...],
    sheet: Path | None,
    seed: int,
    json_file: str | None,
    device: str,
) -> None:
    """Measure whether MODEL's pictures show what captions of composed scenes describe.

    Six tasks after GenEval: one object, two, two in a place, several of a kind, one in a colour, two in a colour each.
    Then one that is big or small, one upside down, and one in black and white, as an outline or as pixel art; and
    backgrounds and styles. Combinations of the split `held_out` never occur in scenes for training. Beside the
    picture ranked first and the mean of all stand the composed scenes themselves, which is as much as the measure can
    see, and captions of other scenes, which is chance. Needs the extra judge.
    """
    start = time.perf_counter()
    echo = partial(echo_text, json_file=json_file)

    from dalle_mini_impl.data.scenes.composer import scene_art
    from dalle_mini_impl.evaluate.judges import efficientnet_judge
    from dalle_mini_impl.evaluate.reference_pictures import open_reference_pictures
    from dalle_mini_impl.evaluate.scene_judge import build_scene_judge
    from dalle_mini_impl.evaluate.scenes import SceneSettings, scene_rows
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    dalle = DalleMini.from_pretrained(model, device)
    judge = efficientnet_judge(dalle.transformer.device)
    with contextlib.redirect_stdout(sys.stderr):  # building a store reports on it
        store = open_reference_pictures(data, dalle.image_tokenizer.config.size).store
    art = scene_art(store, tasks)
    scene_judge = build_scene_judge(art, judge)
    echo(
        f"{len(scene_judge.plain.concepts)} things by {', '.join(scene_judge.plain.vendors)}; share of captions that "
        f"are shown rightly, 95 % interval"
    )
    settings = SceneSettings(scenes=count, candidates=candidates, tasks=tasks, languages=languages, seed=seed)
    rows: list[SceneRow] = []
    shown: list[DrawnScene] = []
    for new_rows, drawn in scene_rows(dalle, scene_judge, settings):
        rows += new_rows
        shown += drawn[:SHOWN_SCENES] if languages[0] == new_rows[0].language else []
        for row in new_rows:
            click.echo(f"  {row.language} {row.split} {row.task}: {row.best.value:.2f}", err=True)
    echo(scene_table(rows, candidates))
    figures = {
        **dalle.source,
        "sampling": dataclasses.asdict(dalle.sampling),
        "data": data,
        "settings": dataclasses.asdict(settings),
        "things": scene_judge.plain.concepts,
        "rows": [dataclasses.asdict(row) for row in rows],
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json_file(json_file, figures)
    if sheet:
        echo(write_sheet(shown, sheet))


def scene_table(rows: "list[SceneRow]", candidates: int) -> str:
    """Rows as aligned text."""
    from dalle_mini_impl.evaluate.intervals import format_share

    titles = ("", "", "", "scenes", f"best of {candidates}", "mean", "composed", "other captions")
    cells = []
    for row in rows:
        shares = (row.best, row.mean, row.true, row.shuffled)
        cells.append((row.language, row.split, row.task, str(row.count), *map(format_share, shares)))
    return aligned_table([titles, *cells])


def write_sheet(drawn: "list[DrawnScene]", path: Path) -> Path:
    """Write for each scene the composed picture and beside it drawn ones, with the caption underneath."""
    from PIL import Image

    from dalle_mini_impl.util.images import contact_sheet
    from dalle_mini_impl.util.save_picture import save_picture

    strips = []
    for one in drawn:
        pictures = one.pictures[:SHOWN_PICTURES]
        composed = one.scene.image.resize(pictures[0].size, Image.Resampling.LANCZOS)
        strips.append(contact_sheet([composed, *pictures], 1 + len(pictures)))
    return save_picture(contact_sheet(strips, 2, [one.scene.caption for one in drawn], gap=8), path)
