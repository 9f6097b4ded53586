"""`dalle evaluate captions`: how often log p(image | name) finds the name of a held-out picture."""

import dataclasses
import warnings
from typing import Any

import click

from dalle_mini_impl.cli.evaluate.common import names, write_figures


@click.command()
@click.argument("model", default="emoji")
@click.option("--data", default="data/emoji-store", show_default=True, help="Store of decoded pictures.")
@click.option("--skip-kinds", default="flag,person-variant", show_default=True, help="Kinds it was not trained on.")
@click.option("--languages", default="en", show_default=True, help="Comma-separated.")
@click.option("--pictures", type=click.IntRange(1), default=100, show_default=True, help="For each language.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Chooses the pictures.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def captions(model: str, data: str, pictures: int, seed: int, **options: Any) -> None:
    """Measure how often MODEL's transformer finds the name of a held-out picture among those of all.

    By log p(image | name), alone, with log p(name), or each place of the picture alone (blind); beside the scorer.
    """
    from tqdm import tqdm

    from dalle_mini_impl.config.data import DataConfig
    from dalle_mini_impl.data.picture_store import open_store
    from dalle_mini_impl.evaluate import captions as measure
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    skipped = names(options["skip_kinds"])
    store = open_store(DataConfig(store=data, skip_kinds=skipped), "validation")
    dalle = DalleMini.from_pretrained(model, options["device"])
    quizzes = [measure.make_naming_task(store, language, pictures, seed) for language in names(options["languages"])]
    total, reports = sum(len(quiz.rows) * len(quiz.names) for quiz in quizzes), []
    with warnings.catch_warnings(), tqdm(total=total, unit=" pairs", delay=2, leave=False) as bar:
        warnings.simplefilter("ignore")  # names that are too long are cut for all alike
        for quiz in quizzes:
            reports += measure.evaluate_captions(dalle, store, quiz, bar.update)
    click.echo(measure.table(reports))
    facts = {
        **dalle.source,
        "data": data,
        "skip_kinds": skipped,
        "seed": seed,
        "reports": [dataclasses.asdict(report) for report in reports],
    }
    write_figures(options["json_file"], facts)
