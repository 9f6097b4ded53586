"""`dalle edit`: a picture changed by the difference of two texts."""

from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.mix import check_animation, strip_options, write_animation
from dalle_mini_impl.cli.options import Count, FiniteFloat, examples, out_option
from dalle_mini_impl.cli.sampling_options import is_given
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS
from dalle_mini_impl.util.text import printable, without_surrogates

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.manipulations import RecordedEdit


@click.command(
    epilog=examples(
        'dalle edit photo.png --from "a cat" --to "a lion" -m runs/mine',
        "dalle edit edit.png -m runs/mine -o again.png              # a strip of dalle edit: the same edit again",
    )
)
@click.argument("picture", type=click.Path())
@click.option("--from", "source", default="", metavar="TEXT", help="What PICTURE shows; may be left out.")
@click.option("--to", "target", metavar="TEXT", help="What it should show.")
@click.option(
    "--theta",
    type=FiniteFloat(0, 1),
    default=0.5,
    show_default=True,
    help="How far to go at the end; DALL-E 2's authors went 0.25 to 0.5.",
)
@click.option("--steps", type=Count(2), default=5, show_default=True, metavar="N", help="Pictures, the first included.")
@out_option("File for the strip of pictures: .png, .jpg or .webp.", "edit.png", endings=(*PICTURE_FORMATS,))
@strip_options
def edit(picture: str, source: str, target: str | None, **options: Any) -> None:
    """Change a picture by the difference of two texts (DALL-E 2).

    The strip begins with PICTURE as the model draws it, from the random numbers that draw exactly this picture; the
    further pictures are drawn from the same numbers, of an embedding that is rotated from --from towards --to.
    """
    from dalle_mini_impl.pipeline import manipulations
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.util.images import contact_sheet, enlarge, open_picture
    from dalle_mini_impl.util.save_picture import save_picture

    unused = ("source", "theta", "steps", "prompt", "guidance", "decoder")
    if target is None and (others := [name for name in unused if is_given(name)]):
        name = "from" if others[0] == "source" else others[0]
        raise UserError(f"expected --to TEXT with --{name}, got none; add it, or leave out --{name} to repeat an edit")
    check_animation(options["frames"])
    image = open_picture(picture)
    record = read_record(picture) if target is None else None
    precision = record.precision if record and options["precision"] == "auto" else options["precision"]
    dalle = DalleMini.from_pretrained(options["model"], options["device"], precision)
    if record is not None:
        if record.checkpoint != dalle.source["checkpoint"]:
            raise UserError(
                f"expected checkpoint {printable(record.checkpoint)}, which made {picture}, got "
                f"{dalle.source['checkpoint']} of model {options['model']}; give the model that made it to --model"
            )
        edited = manipulations.make_edit(dalle, record.edit)
    else:
        chosen = {name: options[name] for name in ("theta", "steps", "prompt", "decoder")}
        chosen |= {"guidance": options["guidance"]} if options["guidance"] is not None else {}
        texts = [without_surrogates(text) for text in (source, target or "")]
        edited = manipulations.edit(dalle, image, *texts, **chosen)
    strip = contact_sheet(enlarge(edited.images, options["zoom"]), len(edited.images))
    click.echo(save_picture(strip, options["out"], edited.metadata))
    write_animation(edited.images, options["frames"], options["zoom"])


def read_record(picture: str) -> "RecordedEdit":
    """The record in a strip of this command.

    Raises:
        UserError: the picture has none.
    """
    from dalle_mini_impl.pipeline.manipulations import parse_edit
    from dalle_mini_impl.util.save_picture import read_metadata

    try:
        metadata = read_metadata(picture)
    except UserError:  # a picture without any record, for which --to was forgotten
        metadata = {}
    return parse_edit(metadata, picture)
