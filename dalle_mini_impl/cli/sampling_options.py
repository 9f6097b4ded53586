"""What the commands that sample have in common: their options, and how they report and write pictures."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dalle_mini_impl.cli.options import (
    CommaSeparated,
    Count,
    FiniteFloat,
    add_options,
    candidates_option,
    device_option,
    echo_text,
    json_option,
    keep_option,
    model_option,
    out_option,
    precision_option,
    scorer_option,
    seed_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PICTURE_FILE, OutputFolder
from dalle_mini_impl.config.sampling import DECODERS, DIFFUSION_STEPS, MAX_ZOOM, PRIORS, RANKS, SAMPLERS
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS
from dalle_mini_impl.util.text import printable

if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm

    from dalle_mini_impl.pipeline.canvas import Canvas
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.pipeline.results import Result

sampling_options = add_options(
    [
        candidates_option(32, "Pictures to sample per prompt."),
        keep_option(8, "Best pictures to keep per prompt."),
        seed_option(),
        click.option(
            "--seeds",
            type=CommaSeparated(click.IntRange(0, 2**63 - 1), minimum=1),
            metavar="A,B,…",
            help="Draw the candidates with these seeds alone, such as those that an earlier run printed.",
        ),
        click.option("--temperature", type=FiniteFloat(), help="0 takes the likeliest id.  [default: the model's]"),
        click.option(
            "--top-k", type=Count(0), help="Sample among this many image ids; 0 is all.  [default: the model's]"
        ),
        click.option(
            "--top-p", type=FiniteFloat(), help="Sample ids of this total probability.  [default: the model's]"
        ),
        click.option(
            "--guidance",
            type=FiniteFloat(),
            help="How much to follow the prompt; 1 is off.  [default: the model's]",
        ),
        click.option("--negative", default="", help="What the pictures should not show."),
        click.option(
            "--prior",
            type=click.Choice(PRIORS),
            help="What gives each picture an image embedding to draw (DALL-E 2).  [default: the model's]",
        ),
        click.option(
            "--decoder",
            type=click.Choice(DECODERS),
            help="What draws the pictures: the transformer, or a U-Net (DALL-E 2).  [default: the model's]",
        ),
        click.option("--sampler", type=click.Choice(SAMPLERS), help="Sampler of the U-Net.  [default: the model's]"),
        click.option(
            "--steps",
            type=click.IntRange(1, DIFFUSION_STEPS),
            metavar="N",
            help="Steps of that sampler.  [default: the model's]",
        ),
        click.option("--eta", type=FiniteFloat(0, 1), help="Noise that ddim adds in each step.  [default: 0]"),
        click.option("--rank", type=click.Choice(RANKS), help="What orders the pictures.  [default: the model's]"),
        click.option(
            "--clip-weight",
            type=FiniteFloat(),
            metavar="X",
            help="How much the scorer counts with --rank both.  [default: the model's]",
        ),
        click.option(
            "--diversity",
            type=FiniteFloat(),
            metavar="X",
            help="Keep good pictures that differ, more so the higher; needs a scorer.  [default: the model's]",
        ),
        scorer_option(
            "Rank by this scorer: shipped name, checkpoint folder, hf:FOLDER-OR-NAME or open_clip:MODEL:PRETRAINED.  "
            "[default: the model's]",
            default=None,
        ),
        click.option("--prune/--no-prune", default=None, help="Stop weak candidates early.  [default: the model's]"),
        click.option("--tile/--no-tile", default=None, help="Make seamless tiles.  [default: the model's]"),
        click.option(
            "--transparent/--no-transparent",
            default=None,
            help="Make plain grounds transparent.  [default: the model's]",
        ),
        click.option(
            "--columns", type=Count(0), default=0, metavar="N", help="Pictures per row of the grid; 0 chooses."
        ),
        click.option(
            "--zoom",
            type=click.IntRange(1, MAX_ZOOM),
            metavar="N",
            help="Write pictures N times larger; each pixel becomes a square.  [default: 1]",
        ),
        click.option("--scores", is_flag=True, help="Write the scores under the pictures."),
        out_option("File for the grid of pictures: .png, .jpg or .webp.", "grid.png", endings=(*PICTURE_FORMATS,)),
        click.option("--save-dir", type=OutputFolder(), metavar="FOLDER", help="Folder for the separate pictures."),
        click.option(
            "--format",
            type=click.Choice(["png", "jpg", "webp"]),
            default="png",
            show_default=True,
            help="Format of the pictures in --save-dir.",
        ),
        click.option(
            "--preview",
            type=PICTURE_FILE,
            metavar="FILE",
            help="Write the pictures so far to this file, the first ones at once.",
        ),
        device_option(),
        click.option(
            "--chunk",
            type=Count(),
            metavar="N",
            help="Candidates to sample at a time; fewer need less memory.  [default: 64; on a GPU as many as fit]",
        ),
        json_option("Write seeds and scores as JSON to FILE; - is standard output."),
    ]
)
"""Options of every command that samples pictures, but for the model and its precision."""

text_sampling_options = add_options(
    [
        seed_option(),
        click.option(
            "--temperature", type=FiniteFloat(), default=1.0, show_default=True, help="0 takes the likeliest text id."
        ),
        click.option(
            "--top-k", type=Count(0), default=0, show_default=True, help="Sample among this many text ids; 0 is all."
        ),
        click.option(
            "--top-p",
            type=FiniteFloat(),
            default=1.0,
            show_default=True,
            help="Sample among ids of this total probability.",
        ),
        model_option(),
        precision_option(),
        device_option(),
        json_option(),
    ]
)
"""Options of every command that samples text, but for the numbers of candidates."""


def generate_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `DalleMini.generate` takes under the same name.

    Raises:
        UserError: more is to be kept than drawn, --seeds contradicts another option, or --rank leaves --scorer or no
            --save-dir leaves --format unused.
    """
    if is_given("format") and not options["save_dir"]:
        raise UserError(
            f"expected --save-dir FOLDER with --format {options['format']}, got none; name a folder, or end --out so"
        )
    if options["decoder"] == "tokens" and (others := [one for one in ("sampler", "steps", "eta") if is_given(one)]):
        raise UserError(f"expected --decoder diffusion with --{others[0]}, got tokens, which has none; leave one out")
    for name in ("scorer", "diversity"):
        if options[name] and options["rank"] in ("likelihood", "none"):
            raise UserError(
                f"expected --rank both or clip with --{name}, got --rank {options['rank']}, which uses no scorer; "
                f"leave one out"
            )
    if options["clip_weight"] is not None and options["rank"] not in (None, "auto", "both"):
        raise UserError(
            f"expected --rank both with --clip-weight, got --rank {options['rank']}, which does not add the scorer to "
            f"the likelihood; leave one out"
        )
    drawing = ("temperature", "top_k", "top_p", "guidance", "tile", "prior", "decoder", "sampler", "steps", "eta")
    choosing = ("rank", "clip_weight", "diversity", "prune", "transparent")
    arguments = {name: options[name] for name in ("candidates", "keep", "seed", "negative", *drawing, *choosing)}
    if seeds := options["seeds"]:
        if others := [f"--{name}" for name in ("candidates", "seed") if is_given(name)]:
            raise UserError(
                f"expected --seeds alone, which says how many candidates there are and how each is drawn, got "
                f"{' and '.join(others)} as well; leave one out"
            )
        arguments |= {"seeds": list(seeds), "candidates": len(seeds)}
        arguments["keep"] = arguments["keep"] if is_given("keep") else len(seeds)
    check_keep(arguments["keep"], arguments["candidates"])
    return arguments


def use_scorer(dalle: "DalleMini", name: str | None) -> None:
    """Rank by the scorer of this name, loaded to where the model is; None leaves the model's own."""
    if name is not None:
        from dalle_mini_impl.scorer.scorer import Scorer

        dalle.scorer = Scorer.from_pretrained(name, str(dalle.device))


def check_format(dalle: "DalleMini", request: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse transparent pictures in files that cannot hold them, before they are drawn.

    Args:
        dalle: whose recommendation holds where the request says nothing.
        request: arguments of `generate`.
        options: of the command, which has `sampling_options`.

    Raises:
        UserError: the grid or the separate pictures would be such files.
    """
    from dalle_mini_impl.util.save_picture import check_transparency

    given = request.get("transparent")
    if dalle.sampling.transparent if given is None else given:
        check_transparency(options["out"].suffix)
        if options["save_dir"]:
            check_transparency(f".{options['format']}")


def check_keep(keep: int, candidates: int) -> None:
    """Refuse a --keep that was given and is more than there will be.

    Raises:
        UserError: it is.
    """
    if is_given("keep") and keep > candidates:
        raise UserError(
            f"expected --keep of at most the {candidates} candidates, got --keep {keep}; raise --candidates or lower it"
        )


def is_given(option: str) -> bool:
    """Whether an option of the running command is on its command line."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def complete_text_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `DalleMini.complete_text` takes under the same name."""
    return {name: options[name] for name in ("candidates", "seed", "temperature", "top_k", "top_p")}


def progress_total(dalle: "DalleMini", arguments: dict[str, Any]) -> int:
    """Sum of what `DalleMini.generate` reports to `progress` with these arguments.

    Args:
        dalle: the model.
        arguments: keyword arguments of `generate`.
    """
    from dalle_mini_impl.pipeline.ranking import default_rank
    from dalle_mini_impl.sampling.tiling import SEAM_PASSES

    candidates = len(arguments["seeds"]) if arguments.get("seeds") else arguments["candidates"]
    diffuses = (arguments.get("decoder") or dalle.sampling.decoder) == "diffusion"
    rank = arguments.get("rank") or dalle.sampling.rank
    if rank == "auto":
        rank = default_rank(dalle.scorer if dalle.has_scorer else None, diffuses)
    if rank == "none":
        candidates = min(candidates, arguments["keep"])  # the others are not drawn
    if diffuses:
        decoder = dalle.diffusion_decoder
        return candidates * (arguments.get("steps") or (decoder.sampling.steps if decoder else 0))
    return candidates * dalle.stream.image_length * (1 + SEAM_PASSES * bool(arguments.get("tile")))


def announce_loading(name: str, purpose: str) -> None:
    """Say on a terminal that a model is being loaded, which may take a while."""
    if sys.stderr.isatty():
        click.echo(f"loading {printable(name)} {purpose}", err=True)


def generate_shown(
    dalle: "DalleMini",
    request: dict[str, Any],
    bar: "tqdm[Any]",
    options: dict[str, Any],
    canvas: "Canvas | None" = None,
) -> "Result":
    """As `DalleMini.generate`, with a progress bar and, with `--preview`, the pictures so far in a file.

    Args:
        dalle: the model.
        request: arguments of `generate`.
        bar: counts image ids.
        options: of the command, which has `sampling_options`.
        canvas: a picture some of which is redrawn.
    """
    arguments = {**request, "chunk": options["chunk"], "canvas": canvas, "progress": _progress(dalle, request, bar)}
    bar.set_description("")
    if options["preview"] is None:
        return dalle.generate(**arguments)

    from dalle_mini_impl.pipeline.canvas import model_size
    from dalle_mini_impl.pipeline.previews import first_preview
    from dalle_mini_impl.sampling.requests import CHUNK
    from dalle_mini_impl.util.images import contact_sheet, enlarge
    from dalle_mini_impl.util.save_picture import save_picture

    def show(images: "list[Image.Image]") -> None:
        save_picture(contact_sheet(enlarge(images, options["zoom"] or 1)), options["preview"])

    candidates = len(request["seeds"]) if request.get("seeds") else request["candidates"]
    count = min(request["keep"], candidates, options["chunk"] or CHUNK)
    show([first_preview(model_size(dalle.image_tokenizer, dalle.stream.config.grid), canvas)] * count)
    for preview in dalle.stream_previews(**arguments, show=count):
        show(preview.images)
        result = preview.result
    assert result is not None  # the last preview has it
    return result


def _progress(dalle: "DalleMini", request: dict[str, Any], bar: "tqdm[Any]") -> Callable[[int], None]:
    """Moves a bar by sampled ids, and says on it when they are all sampled and pictures are decoded and ranked."""
    left = progress_total(dalle, request)

    def update(ids: int) -> None:
        nonlocal left
        left -= ids
        bar.update(ids)
        if left <= 0:
            bar.set_description("decoding and ranking")

    return update


def write_results(
    results: "list[Result]", grid: "Image.Image", metadata: dict[str, Any], options: dict[str, Any], zoom: int
) -> None:
    """Report results, then write their grid and, with `--save-dir`, each picture.

    Args:
        results: one per prompt.
        grid: all pictures on one sheet.
        metadata: what the grid's file records.
        options: of the command, which has `sampling_options`.
        zoom: how many times larger than they were drawn the pictures are written.
    """
    from dalle_mini_impl.pipeline.results import picture_text
    from dalle_mini_impl.util.save_picture import save_picture

    json_file = options["json_file"]
    for result in results:
        echo_text(summary(result), json_file)
    write_json_file(json_file, [result.metadata() for result in results])
    replaced = " (replaced)" if options["out"].is_file() else ""
    path = save_picture(grid, options["out"], metadata, picture_text(results))
    echo_text(f"{path}{replaced}", json_file)
    if options["save_dir"]:
        for result in results:
            result.save(options["save_dir"], zoom, f".{options['format']}")
        echo_text(options["save_dir"], json_file)


def summary(result: "Result") -> str:
    """One line about the pictures of a prompt."""
    best = result[0]
    score = "not ranked" if best.score is None else f"best score {best.score:.3f}"
    return f"{printable(result.prompt) or 'no prompt'}: {score}, drawn again by --seeds {best.seed}"
