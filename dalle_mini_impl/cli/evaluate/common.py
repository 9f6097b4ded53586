"""Options and steps that several `dalle evaluate` commands share."""

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dalle_mini_impl.cli.options import CommaSeparated, add_options, device_option, json_option, seed_option

if TYPE_CHECKING:
    from dalle_mini_impl.data.picture_store import PictureStore
    from dalle_mini_impl.evaluate.generation import EvaluationContext

F = TypeVar("F", bound=Callable[..., Any])

FIGURES = "Write the figures as JSON to FILE; - is standard output."


def data_option(help: str = "Picture store, or a source to make one from.") -> Callable[[F], F]:
    """`--data PATH`: the pictures to measure with."""
    return click.option(
        "--data", type=click.Path(), default="data/emoji-store", show_default=True, metavar="PATH", help=help
    )


def split_option(choices: tuple[str, ...]) -> Callable[[F], F]:
    """`--split`: which pictures of the data to use."""
    return click.option(
        "--split",
        type=click.Choice(choices),
        default="validation",
        show_default=True,
        help="Pictures of the data to use.",
    )


def skip_kinds_option() -> Callable[[F], F]:
    """`--skip-kinds A,B`: kinds of emoji that the included model was not trained on."""
    return click.option(
        "--skip-kinds",
        type=CommaSeparated(),
        default="flag,person-variant",
        show_default=True,
        metavar="A,B",
        help="Kinds of pictures to leave out.",
    )


def reference_options() -> Callable[[F], F]:
    """Argument and options of every command that compares pictures with the reference pictures."""
    return add_options(
        [
            click.argument("model", default="emoji"),
            data_option(),
            click.option(
                "--kinds",
                type=CommaSeparated(minimum=1),
                default="plain",
                show_default=True,
                metavar="A,B",
                help="Kinds MODEL was trained on, such as plain,flag.",
            ),
            seed_option("Determines the sampled pairs and pictures."),
            json_option(FIGURES),
            device_option(),
        ]
    )


def load_context(model: str, options: dict[str, Any]) -> "EvaluationContext":
    """Load the model, the reference pictures and the judges, and compute the judges' features of all references.

    Args:
        model: shipped name or checkpoint folder.
        options: those of `reference_options`, and `pairs`, `candidates`, `sweep_pairs`; optionally `languages`,
            `judge_size`, and `temperatures` and `guidances` of a sweep.

    Raises:
        UserError: the store cannot serve the settings, or model, store or judge is missing.
    """
    from tqdm import tqdm

    from dalle_mini_impl.evaluate.generation import EvaluationContext, GenerationSettings, check_settings
    from dalle_mini_impl.evaluate.judges import load_judges
    from dalle_mini_impl.evaluate.reference_pictures import build_r_precisions, open_reference_pictures
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    settings = GenerationSettings(
        pairs=options["pairs"],
        candidates=options["candidates"],
        seed=options["seed"],
        sweep_pairs=options["sweep_pairs"],
        kinds=options["kinds"],
        languages=options.get("languages", ()),
        temperatures=options.get("temperatures", ()),
        guidances=options.get("guidances", ()),
    )
    dalle = DalleMini.from_pretrained(model, options["device"])
    with contextlib.redirect_stdout(sys.stderr):  # building a store reports on it
        size = options.get("judge_size") or dalle.image_tokenizer.config.size
        reference = open_reference_pictures(options["data"], size)
    check_settings(reference, settings)
    judges = load_judges(dalle.transformer.device)
    with tqdm(total=len(reference.store), desc="judges", unit=" pictures", delay=2, leave=False) as bar:
        r_precisions = build_r_precisions(reference, judges, bar.update)
    return EvaluationContext(dalle, reference, r_precisions, settings)


def open_data(data: str, split: str, skip_kinds: tuple[str, ...]) -> "PictureStore":
    """One split of a picture store, made from a source where `data` is one.

    Raises:
        UserError: `data` does not exist, or has no such pictures.
    """
    from dalle_mini_impl.data.picture_store import open_store
    from dalle_mini_impl.evaluate.data import store_config

    with contextlib.redirect_stdout(sys.stderr):  # building a store reports on it
        return open_store(store_config(data, skip_kinds), split)


def heading(context: "EvaluationContext") -> str:
    """What is measured, and the result of choosing at random."""
    sampling = context.dalle.sampling
    reference = context.reference
    count = reference.concept_count
    height, width = reference.size
    size = f"{height}" if height == width else f"{height}×{width}"
    chance = f"at {size} px; chance is {1 / count:.4f} and {min(1, 5 / count):.4f}"
    if reference.has_vendors:
        kind, pictures = "concept", f"real art: {len(reference.store)} pictures of {count} concepts"
        pictures += f" by {', '.join(reference.vendor_names)}, {chance}"
    else:
        kind, pictures = "caption", f"real pictures: {len(reference.store)} with {count} captions, {chance}"
    return (
        f"model {context.dalle.source['model']} ({context.dalle.source['checkpoint']}): temperature "
        f"{sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}, guidance {sampling.guidance:g}, "
        f"rank {sampling.rank}, clip_weight {sampling.clip_weight:g}\n{pictures}\n"
        f"share of pictures whose {kind} is the nearest (top-1) or among the nearest five, 95 % interval"
    )
