"""What commands have in common that let judges look at a model's pictures."""

from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import write_json

if TYPE_CHECKING:
    from dalle_mini_impl.evaluate.generation import EvaluationContext


def evaluation_options(command: Any) -> Any:
    """Give a command the arguments that everything with judges has."""
    for parameter in reversed(
        (
            click.argument("model", default="emoji"),
            click.option("--data", default="data/emoji-store", show_default=True, help="Store of the emoji set."),
            click.option(
                "--kinds", default="plain", show_default=True, help="Kinds it was trained on, e.g. plain,flag."
            ),
            click.option(
                "--seed", type=click.IntRange(0), default=0, show_default=True, help="Chooses pairs, pictures."
            ),
            click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
        )
    ):
        command = parameter(command)
    return command


def set_up(model: str, options: dict[str, Any]) -> "EvaluationContext":
    """Load the model and the judges, and show the judges all art.

    Raises:
        UserError: a list is malformed, the store cannot serve the settings, or model, store or judge is missing.
    """
    from tqdm import tqdm

    from dalle_mini_impl.evaluate.generation import EvaluationContext, GenerationSettings, check
    from dalle_mini_impl.evaluate.judges import load_judges
    from dalle_mini_impl.evaluate.reference_pictures import build_banks, open_reference_pictures
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    same = ("pairs", "candidates", "seed", "sweep_pairs")
    settings = GenerationSettings(
        **{name: options[name] for name in same},
        kinds=names(options["kinds"]),
        languages=names(options["languages"]),
        temperatures=numbers(options["temperatures"], "--temperatures") if options["sweep"] else (),
        guidances=numbers(options["guidances"], "--guidances") if options["sweep"] else (),
    )
    dalle = DalleMini.from_pretrained(model, options["device"])
    art = open_reference_pictures(options["data"], dalle.image_tokenizer.config.image_size)
    check(art, settings)
    judges = load_judges(dalle.transformer.device)
    with tqdm(total=len(art.store), desc="judges look at real art", unit=" pictures", delay=2, leave=False) as bar:
        banks = build_banks(art, judges, bar.update)
    return EvaluationContext(dalle, art, banks, settings)


def heading(context: "EvaluationContext") -> str:
    """What is measured, and what chance would give."""
    sampling, art = context.dalle.sampling, context.art
    concepts = next(iter(context.banks.values())).concept_count
    return (
        f"model {context.dalle.source['model']} ({context.dalle.source['checkpoint']}): temperature "
        f"{sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}, guidance {sampling.guidance:g}\n"
        f"real art: {len(art.store)} pictures of {concepts} concepts by {', '.join(art.vendor_names)}, "
        f"at {art.size} px; chance is {1 / concepts:.4f} and {5 / concepts:.4f}\n"
        f"share of pictures whose concept is the nearest (top-1) or among the nearest five, 95 % interval"
    )


def names(text: str) -> tuple[str, ...]:
    """Parts of a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers of a comma-separated list.

    Raises:
        UserError: there is none, or a part is no number.
    """
    try:
        found = tuple(float(part) for part in names(text))
    except ValueError as error:
        raise UserError(f"{option} {text!r} was given, expected numbers such as 0.7,0.9") from error
    if not found:
        raise UserError(f"{option} {text!r} was given, expected at least one number")
    return found


def write_figures(path: str | None, facts: dict[str, Any]) -> None:
    """Write figures as JSON, if a file was asked for."""
    if path is not None:
        click.echo(write_json(path, facts))
