"""`dalle paint`: one picture, optimised in the latent space of an image tokenizer until scorers find that it fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.options import (
    Count,
    FiniteFloat,
    device_option,
    echo_text,
    examples,
    json_option,
    model_option,
    out_option,
    read_size,
    scorer_option,
    seed_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import OutputFile
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS
from dalle_mini_impl.util.text import without_surrogates

if TYPE_CHECKING:
    from PIL import Image

    from dalle_mini_impl.painting.painter import Painter, Step


@click.command(
    epilog=examples(
        'dalle paint "a fox:1.0 | snow:0.4 | text:-0.3"  # a negative weight steers away',
        'dalle paint "a fox | photo.jpg:0.5"             # a file is a picture to resemble',
        'dalle paint "a fox" --init-image photo.jpg --init-weight 1',
        'dalle paint "clock at 12\\:30"                   # a colon that starts no weight',
    )
)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@model_option("Model whose image tokenizer to use: shipped name, checkpoint folder or hf:USER/REPO.")
@scorer_option("Scorer that the picture should satisfy; may be repeated.  [default: the model's]", multiple=True)
@click.option("--steps", type=Count(0), default=200, show_default=True, metavar="N", help="Steps of the optimiser.")
@click.option("--size", default="", metavar="S|HxW", help="Height and width in pixels.  [default: the model's]")
@click.option(
    "--cuts",
    type=Count(),
    default=32,
    show_default=True,
    metavar="N",
    help="Random cuts to score at each step.",
)
@click.option(
    "--chunk",
    type=Count(),
    default=16,
    show_default=True,
    metavar="N",
    help="Cuts to score at a time; fewer need less memory.",
)
@click.option(
    "--learning-rate",
    type=FiniteFloat(),
    default=0.2,
    show_default=True,
    help="In standard deviations of the codebook.",
)
@click.option(
    "--init-image", type=click.Path(), metavar="FILE", help="Picture to start from.  [default: random image ids]"
)
@click.option(
    "--init-weight", type=FiniteFloat(), default=0.0, show_default=True, help="How strongly to stay near --init-image."
)
@click.option("--noise-prompt", multiple=True, metavar="SEED:WEIGHT", help="Random target; may be repeated.")
@seed_option()
@out_option("File for the picture: .png, .jpg or .webp.", "painting.png", endings=(*PICTURE_FORMATS,))
@click.option(
    "--preview-every",
    type=Count(0),
    default=0,
    metavar="STEPS",
    help="Write …-preview beside --out at once and every so many steps; 0 writes none.",
)
@click.option(
    "--frames",
    type=OutputFile(".gif", ".mp4"),
    metavar="FILE",
    help="Write the progress as an animation to this .gif or .mp4.",
)
@click.option("--frame-count", type=Count(), default=50, show_default=True, metavar="N", help="Pictures in --frames.")
@device_option()
@json_option("Write settings and losses as JSON to FILE; - is standard output.")
def paint(prompts: tuple[str, ...], **options: Any) -> None:
    """Optimise one picture until it fits all prompts (VQGAN+CLIP).

    Prompts may have weights, as in "a fox:1.0 | snow:0.4". Ctrl-C ends the command early and keeps the picture so far.
    """
    from dalle_mini_impl.painting.frames import check_frames, frame_steps, save_frames

    shown_steps = frame_steps(options["steps"], options["frame_count"]) if options["frames"] else set()
    if options["frames"]:
        check_frames(options["frames"])
    painter = load_painter(prompts, options)
    frames = [painter.image] if shown_steps else []
    for frame in frames:
        check_memory(len(shown_steps) * 3 * frame.width * frame.height, f"{len(shown_steps)} frames", "take fewer")
    last = None
    if options["preview_every"]:
        save_preview(painter.image, options["out"])
    try:
        for last in with_progress_bar(painter):
            if last.number in shown_steps:
                frames.append(painter.image)
            if options["preview_every"] and last.number % options["preview_every"] == 0:
                save_preview(painter.image, options["out"])
    except KeyboardInterrupt:
        click.echo(f"stopped after {painter.done} of {options['steps']} steps", err=True)
    losses = last.losses if last else {}
    json_file = options["json_file"]
    if last:
        line = ", ".join(f"{name}: loss {loss:.3f}" for name, loss in losses.items())
        echo_text(f"{line} at step {last.number}", json_file)
    write_json_file(json_file, {**painter.result().settings, "losses": losses, "out": str(options["out"])})
    if frames:
        echo_text(save_frames(frames, options["frames"]), json_file)
    echo_text(painter.result().save(options["out"]), json_file)


def load_painter(prompts: tuple[str, ...], options: dict[str, Any]) -> "Painter":
    """Load the image tokenizer and the scorers, and parse the prompts.

    Raises:
        UserError: an option is out of range, or something is missing.
    """
    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
    from dalle_mini_impl.painting.cuts import Cuts
    from dalle_mini_impl.painting.painter import Painter, PaintSettings
    from dalle_mini_impl.painting.targets import parse_noise, parse_targets
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.util.devices import choose_device
    from dalle_mini_impl.util.images import open_picture

    targets = [target for text in prompts for target in parse_targets(without_surrogates(text))]
    targets += [parse_noise(word) for word in options["noise_prompt"]]
    settings = PaintSettings(
        **{name: options[name] for name in ("steps", "learning_rate", "init_weight", "seed")},
        size=read_size(options["size"]),
        cuts=Cuts(count=options["cuts"], chunk=options["chunk"]),
    )
    start = open_picture(options["init_image"]) if options["init_image"] else None
    device = choose_device(options["device"])
    folder = find_checkpoint(options["model"])
    tokenizer, identity = load_image_tokenizer(folder, device)
    scorers = {name: Scorer.from_pretrained(name, device) for name in options["scorers"]}
    scorers = scorers or {options["model"]: Scorer.from_pretrained(folder, device)}
    source = {
        "model": options["model"],
        "image_tokenizer": identity,
        "scorers": list(scorers),
        "init_image": options["init_image"],
    }
    click.echo(
        f"painting with image tokenizer {identity} of {options['model']}, scored by {', '.join(scorers)}", err=True
    )
    return Painter(tokenizer, scorers, targets, settings, start, source)


def with_progress_bar(painter: "Painter") -> "Iterator[Step]":
    """The painter's steps, with a progress bar that shows the loss."""
    from tqdm import tqdm

    # None: no bar where standard error is no terminal.
    with tqdm(painter, total=painter.settings.steps, unit=" steps", disable=None, leave=False) as bar:
        for step in bar:
            bar.set_postfix(loss=f"{step.loss:.3f}")
            yield step


def save_preview(image: "Image.Image", out: Path) -> None:
    """Write the picture so far beside `out`, over the previous preview."""
    from dalle_mini_impl.util.save_picture import save_picture

    save_picture(image, out.with_name(f"{out.stem}-preview{out.suffix or '.png'}"))
