"""`dalle compare`: image tokenizers trained for the same minutes, measured side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.evaluate.common import split_option
from dalle_mini_impl.cli.options import MAX_MINUTES, FiniteFloat, device_option, examples, keep_option, out_option
from dalle_mini_impl.cli.outputs import OutputFile
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_folder_output

if TYPE_CHECKING:
    from dalle_mini_impl.bench.variants import Variant
    from dalle_mini_impl.evaluate.image_tokenizer import TokenizerEvaluation


@click.command(epilog=examples("dalle compare configs/compare/image_tokenizers.yaml --minutes 20"))
@click.argument("variants")
@click.option(
    "--minutes",
    type=FiniteFloat(0, MAX_MINUTES, min_open=True),
    default=10.0,
    show_default=True,
    help="Training time of each variant.",
)
@out_option("Folder for the trained variants.", "runs/compare", folder=True)
@click.option(
    "--document",
    type=OutputFile(".md"),
    default="compare.md",
    show_default=True,
    help="Markdown file to write; its JSON and pictures are written beside it.",
)
@split_option(("validation", "train", "all"))
@keep_option(12, "Example pictures on each sheet.")
@device_option("Where to measure: auto, cpu, cuda, cuda:1 or mps.")
def compare(variants: str, minutes: float, out: Path, document: Path, **options: Any) -> None:
    """Train image tokenizers for equal time and measure them.

    VARIANTS is a file such as configs/compare/image_tokenizers.yaml. Variants that were trained before with the same
    settings are not trained again.
    """
    from tqdm import tqdm

    from dalle_mini_impl.bench.variants import read_variants, train
    from dalle_mini_impl.bench.variants_report import handwritten_parts, variant_entry, write_comparison
    from dalle_mini_impl.evaluate.reconstruction import ReconstructionMetrics
    from dalle_mini_impl.util.devices import choose_device

    # Missing markers and missing packages are reported now rather than after hours of training.
    handwritten_parts(document)
    check_folder_output(out)
    ReconstructionMetrics("cpu")
    device = choose_device(options["device"])
    planned = read_variants(variants, minutes, out)
    trainings = []
    for number, variant in enumerate(planned, 1):
        click.echo(
            f"{number}/{len(planned)} {variant.name}: {minutes:g} minutes, output in {variant.folder}/output.txt"
        )
        with tqdm(
            total=round(60 * minutes), bar_format="{l_bar}{bar}| {n:.0f} of {total} s", leave=False, disable=None
        ) as bar:  # no bar in a file
            trainings.append(train(variant, bar.update))
        click.echo("  " + ", ".join(f"{name} {value}" for name, value in trainings[-1].items()))
    data = planned[0].config.data.store
    evaluations = [
        None if "failed" in training else measure(variant, data, options["split"], options["keep"], device)
        for variant, training in zip(planned, trainings, strict=True)
    ]
    comparison = {
        "command": f"dalle compare {variants} --minutes {minutes:g} --document {document}",
        "machine": machine(),
        "minutes": minutes,
        "data": data,
        "split": options["split"],
        "variants": [variant_entry(*one) for one in zip(planned, trainings, evaluations, strict=True)],
    }
    for path in write_comparison(document, comparison, [one for one in evaluations if one]):
        click.echo(path)
    if failed := [variant.name for variant, one in zip(planned, trainings, strict=True) if "failed" in one]:
        raise UserError(
            f"{len(failed)} of {len(planned)} variants failed: {', '.join(failed)}; "
            f"see their output.txt, and run the same command again to train only those"
        )


def measure(variant: "Variant", data: str, split: str, examples: int, device: str) -> "TokenizerEvaluation":
    """Evaluate the trained image tokenizer of a variant, with some example pictures."""
    from tqdm import tqdm

    from dalle_mini_impl.data.pair import SkipLog
    from dalle_mini_impl.evaluate.batches import picture_batches
    from dalle_mini_impl.evaluate.image_tokenizer import evaluate_image_tokenizer
    from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer

    tokenizer, _ = load_image_tokenizer(variant.model, device)
    batches = picture_batches(data, split, tokenizer.config.size, SkipLog())
    with tqdm(batches, desc=f"measuring {variant.name}", unit=" batches", delay=2, leave=False) as bar:
        return evaluate_image_tokenizer(variant.name, tokenizer, bar, examples)


def machine() -> str:
    """The device that training runs on, in words."""
    import torch

    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    device = torch.accelerator.current_accelerator()
    return f"{torch.get_num_threads()} CPU cores" if device is None else str(device)
