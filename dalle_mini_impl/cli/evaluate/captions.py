"""`dalle evaluate captions`: how often log p(image | name) is highest for a held-out picture's own name."""

import dataclasses
import warnings

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES, data_option, open_data, skip_kinds_option
from dalle_mini_impl.cli.options import (
    CommaSeparated,
    Count,
    device_option,
    echo_text,
    examples,
    json_option,
    seed_option,
    write_json_file,
)


@click.command(epilog=examples("dalle evaluate captions emoji --pictures 20 --languages en,de"))
@click.argument("model", default="emoji")
@data_option()
@skip_kinds_option()
@click.option(
    "--languages",
    type=CommaSeparated(minimum=1),
    default="en",
    show_default=True,
    metavar="A,B",
    help="Languages of the names.",
)
@click.option("--pictures", type=Count(), default=100, show_default=True, help="Pictures per language.")
@seed_option("Determines the sampled pictures.")
@json_option(FIGURES)
@device_option()
def captions(
    model: str,
    data: str,
    skip_kinds: tuple[str, ...],
    languages: tuple[str, ...],
    pictures: int,
    seed: int,
    json_file: str | None,
    device: str,
) -> None:
    """Measure how often MODEL's transformer finds a held-out picture's name among all names.

    Names are ranked by log p(image | name); by that plus log p(name); by each image id given the name alone (blind);
    and by the scorer.
    """
    from tqdm import tqdm

    from dalle_mini_impl.evaluate.captions import evaluate_captions, make_naming_task, report_table
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    store = open_data(data, "validation", skip_kinds)
    dalle = DalleMini.from_pretrained(model, device)
    tasks = [make_naming_task(store, language, pictures, seed) for language in languages]
    total = sum(len(task.picture_indices) * len(task.names) for task in tasks)
    reports = []
    with warnings.catch_warnings(), tqdm(total=total, unit=" pairs", delay=2, leave=False) as bar:
        warnings.simplefilter("ignore")  # names that are too long are cut for all methods alike
        for task in tasks:
            reports += evaluate_captions(dalle, store, task, bar.update)
    echo_text(report_table(reports), json_file)
    figures = {
        **dalle.source,
        "data": data,
        "skip_kinds": skip_kinds,
        "seed": seed,
        "reports": [dataclasses.asdict(report) for report in reports],
    }
    write_json_file(json_file, figures)
