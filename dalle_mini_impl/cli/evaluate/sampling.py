"""`dalle evaluate sampling`: chooses a model's default temperature, guidance, top-k and ranking."""

import contextlib
import sys

import click

from dalle_mini_impl.cli.evaluate.common import FIGURES, data_option
from dalle_mini_impl.cli.options import (
    FiniteFloat,
    device_option,
    echo_text,
    examples,
    json_option,
    seed_option,
    write_json_file,
)


@click.command(
    epilog=examples(
        "dalle evaluate sampling runs/mine/model --data runs/mine/store --save",
        "dalle evaluate sampling emoji --seconds 300 --json choice.json",
    )
)
@click.argument("model", default="emoji")
@data_option()
@click.option(
    "--seconds",
    type=FiniteFloat(0, min_open=True),
    default=60.0,
    show_default=True,
    help="How long it may take; longer is surer.",
)
@click.option("--save", is_flag=True, help="Make them the defaults of MODEL, a checkpoint folder.")
@seed_option("Determines the captions and the candidates.")
@json_option(FIGURES)
@device_option()
def sampling(model: str, data: str, seconds: float, save: bool, seed: int, json_file: str | None, device: str) -> None:
    """Choose MODEL's temperature, guidance, top-k and ranking.

    Settings are tried on held-out captions and captions of the training split by turns. Best is whose pictures a judge
    takes for those of their captions; also says whether ranking by the scorer helps. Without the extra judge bare
    pixels are compared, which is weaker.
    """
    from tqdm import tqdm

    from dalle_mini_impl.checkpoint.find import check_own_folder
    from dalle_mini_impl.checkpoint.settings import save_sampling
    from dalle_mini_impl.evaluate.judges import best_judge
    from dalle_mini_impl.evaluate.reference_pictures import open_reference_pictures
    from dalle_mini_impl.evaluate.sampling_report import choice_as_json, choice_text
    from dalle_mini_impl.evaluate.sampling_settings import choose_sampling
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    folder = check_own_folder(model) if save else None
    dalle = DalleMini.from_pretrained(model, device)
    judge, missing = best_judge(dalle.transformer.device)
    if missing:
        click.echo(missing, err=True)
    with contextlib.redirect_stdout(sys.stderr):  # building a store reports on it
        reference = open_reference_pictures(data, dalle.image_tokenizer.config.size)
    with tqdm(total=100, desc="trying settings", unit=" %", delay=2, leave=False) as bar:
        choice = choose_sampling(
            dalle, reference, judge, seconds, seed=seed, progress=lambda share: bar.update(int(100 * share) - bar.n)
        )
    echo_text(choice_text(choice), json_file)
    write_json_file(json_file, {**dalle.source, "data": data, "seed": seed, **choice_as_json(choice)})
    if folder is not None:
        echo_text(save_sampling(folder, choice.sampling), json_file)
