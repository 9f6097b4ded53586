"""`dalle paint`: a picture optimised in the latent space of an image tokenizer until a scorer likes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dalle_mini_impl.painting.painter import Painter, Step


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@click.option(
    "--model", default="emoji", show_default=True, help="Whose image tokenizer: emoji, a folder or hf:USER/REPO."
)
@click.option(
    "--scorer", "scorers", multiple=True, metavar="NAME", help="Who judges; may be repeated.  [default: the model's]"
)
@click.option("--steps", default=200, show_default=True, help="Steps of the optimiser.")
@click.option("--size", default="", metavar="S|HxW", help="Height and width in pixels.  [default: the model's]")
@click.option("--cuts", default=32, show_default=True, help="Random cuts that are judged at each step.")
@click.option("--chunk", default=16, show_default=True, help="Cuts judged at a time; less needs less memory.")
@click.option("--learning-rate", default=0.2, show_default=True, help="In standard deviations of the codebook.")
@click.option("--init-image", type=click.Path(), help="Picture to start from.  [default: random image ids]")
@click.option("--init-weight", default=0.0, show_default=True, help="How strongly to stay near --init-image.")
@click.option("--noise-prompt", multiple=True, metavar="SEED:WEIGHT", help="Random direction; may be repeated.")
@click.option("--seed", default=0, show_default=True, help="Makes the whole run repeatable.")
@click.option("--out", default="painting.png", show_default=True, type=click.Path(path_type=Path), help="The picture.")
@click.option("--preview-every", default=0, metavar="STEPS", help="Write …-preview.png beside --out so often.")
@click.option("--frames", type=click.Path(), help="Also show how it came about, in this .gif or .mp4.")
@click.option("--frame-count", default=50, show_default=True, help="Pictures in --frames.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print settings and losses as JSON.")
def paint(prompts: tuple[str, ...], **options: Any) -> None:
    """Paint one picture that fits all prompts, by VQGAN+CLIP.

    \b
    dalle paint "a fox:1.0 | snow:0.4 | text:-0.3"      with weights, and away from something
    dalle paint "a fox | photo.jpg:0.5"                 a file's name is a picture to resemble
    dalle paint "a fox" --init-image photo.jpg --init-weight 1
    dalle paint "clock at 12\\:30"                       a number behind a colon is a weight, unless escaped

    Ctrl-C ends it early and keeps the picture so far.
    """
    from dalle_mini_impl.painting.frames import check_frames, frame_steps, save_frames

    wanted = frame_steps(options["steps"], options["frame_count"]) if options["frames"] else set()
    if options["frames"]:
        check_frames(options["frames"])
    if options["preview_every"] < 0:
        raise UserError(f"--preview-every {options['preview_every']} was given, expected 1 or more, or 0 for none")
    painter = prepare(prompts, options)
    frames = [painter.image] if wanted else []
    last = None
    try:
        for last in progress(painter):
            if last.number in wanted:
                frames.append(painter.image)
            if options["preview_every"] and last.number % options["preview_every"] == 0:
                save_preview(painter.image, options["out"])
    except KeyboardInterrupt:
        click.echo(f"stopped after {painter.done} of {options['steps']} steps", err=True)
    report(painter, last, options)
    if frames:
        click.echo(str(save_frames(frames, options["frames"])), err=options["as_json"])
    click.echo(str(painter.result().save(options["out"])), err=options["as_json"])


def prepare(prompts: tuple[str, ...], options: dict[str, Any]) -> "Painter":
    """Load what paints and judges.

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

    # Bytes that are no UTF-8 arrive as lone surrogates, which neither a tokenizer nor a PNG can hold.
    texts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]
    targets = [target for text in texts for target in parse_targets(text)]
    targets += [parse_noise(word) for word in options["noise_prompt"]]
    same = ("steps", "learning_rate", "init_weight", "seed")
    cuts = Cuts(count=options["cuts"], chunk=options["chunk"])
    settings = PaintSettings(**{name: options[name] for name in same}, size=read_size(options["size"]), cuts=cuts)
    start = open_picture(options["init_image"]) if options["init_image"] else None
    device, folder = choose_device(options["device"]), find_checkpoint(options["model"])
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
        f"painting with image tokenizer {identity} of {options['model']}, judged by {', '.join(scorers)}", err=True
    )
    return Painter(tokenizer, scorers, targets, settings, start, source)


def read_size(text: str) -> int | tuple[int, int]:
    """`96` or `64x96`, height first; 0 for nothing.

    Raises:
        UserError: it is neither.
    """
    parts = text.lower().replace("×", "x").split("x") if text else ["0"]
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--size {text} was given; expected a side in pixels, or height x width, such as 96 or 64x96")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def progress(painter: "Painter") -> "Iterator[Step]":
    """The painter's steps, behind a bar that tells the loss."""
    from tqdm import tqdm

    # None: no bar where there is no terminal.
    with tqdm(painter, total=painter.settings.steps, unit=" steps", disable=None, leave=False) as bar:
        for step in bar:
            bar.set_postfix(loss=f"{step.loss:.3f}")
            yield step


def save_preview(image: "Image.Image", out: Path) -> None:
    """Write the picture so far beside `out`, over the one before."""
    from dalle_mini_impl.util.images import save_png

    save_png(image, out.with_name(f"{out.stem}-preview.png"))


def report(painter: "Painter", last: "Step | None", options: dict[str, Any]) -> None:
    """Print how it went, as text or JSON."""
    losses = last.losses if last else {}
    if options["as_json"]:
        click.echo(
            json.dumps({**painter.result().settings, "losses": losses, "out": str(options["out"])}, ensure_ascii=False)
        )
    elif last:
        click.echo(", ".join(f"{name}: loss {loss:.3f}" for name, loss in losses.items()) + f" at step {last.number}")
