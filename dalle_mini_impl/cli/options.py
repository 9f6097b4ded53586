"""Options that several commands share, so that the same thing has the same name, short form and help everywhere.

The words of a choice come from modules that do not import torch, such as `config.sampling`, because `--help` must not
wait for torch.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dalle_mini_impl.cli.outputs import STANDARD_OUTPUT, OutputFile, is_special
from dalle_mini_impl.config.data import LARGEST_STORE_SIZE
from dalle_mini_impl.config.sampling import PRECISIONS
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import format_json, write_json
from dalle_mini_impl.util.read_files import MAX_TEXT_BYTES, read_bytes
from dalle_mini_impl.util.text import decode_text, escape_controls, split_lines

F = TypeVar("F", bound=Callable[..., Any])
MAX_COUNT = 2**31 - 1
"""Largest number of things, pixels or steps that an option takes."""
MAX_MINUTES = 1_000_000
"""Longest training that an option asks for: two years."""


def examples(*commands: str) -> str:
    """The `epilog` of a command: example calls, one per line, never wrapped."""
    return "\n".join(["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {line}" for line in commands)])


def add_options(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Combine several option decorators into one; `--help` lists them in the given order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def read_size(text: str) -> int | tuple[int, int]:
    """The value of `--size`: `96` or `64x96`, height first; 0 where it is not given.

    Raises:
        UserError: it is neither.
    """
    parts = text.lower().replace("×", "x").split("x") if text else ["0"]
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UserError(f"expected a side in pixels, or height x width, got --size {text}; try --size 96 or 64x96")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


class PictureSize(click.ParamType):
    """Height and width in pixels, above 0: `96` or `64x96`, height first."""

    name = "S|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The value as (height, width)."""
        try:
            size = read_size(value) if isinstance(value, str) else value
        except UserError as error:
            self.fail(str(error), param, ctx)
        height, width = (size, size) if isinstance(size, int) else size
        if not (0 < height <= LARGEST_STORE_SIZE and 0 < width <= LARGEST_STORE_SIZE):
            self.fail(f"expected 1 to {LARGEST_STORE_SIZE} pixels, got --size {value}", param, ctx)
        return height, width


class JsonFile(OutputFile):
    """The value of `--json`; with other endings, the prompt in `dalle sample --json "a red heart"` would be a file."""

    def __init__(self) -> None:
        super().__init__(".json", allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the path.

        Raises:
            UserError: it is neither `-` nor the path of a `.json` file that can be written.
        """
        path = Path(value)
        if value != STANDARD_OUTPUT and path.suffix.lower() != ".json" and not is_special(path):
            raise UserError(
                f"expected a file that ends in .json, got --json {value}; give --json - for standard output"
            )
        return str(super().convert(value, param, ctx))


def json_option(help: str = "Write the results as JSON to FILE; - is standard output.") -> Callable[[F], F]:
    """`--json FILE`, passed on as `json_file`; `--json` at the end of a command line is `--json -`."""
    return click.option(
        "--json",
        "json_file",
        type=JsonFile(),
        is_flag=False,
        flag_value=STANDARD_OUTPUT,
        metavar="FILE",
        help=help,
    )


def device_option(help: str = "Where to compute: auto, cpu, cuda, cuda:1 or mps.") -> Callable[[F], F]:
    """`--device NAME`, `auto` unless given; `util.devices.choose_device` reads it."""
    return click.option("--device", default="auto", show_default=True, metavar="NAME", help=help)


def model_option(
    help: str = "Shipped name, checkpoint folder or hf:USER/REPO.", default: str | None = "emoji"
) -> Callable[[F], F]:
    """`--model NAME`, `-m NAME`; `checkpoint.find.find_checkpoint` reads it."""
    return click.option("--model", "-m", default=default, show_default=True, metavar="NAME", help=help)


def precision_option(help: str = "Number format of the transformer.", default: str | None = "auto") -> Callable[[F], F]:
    """`--precision auto|fp32|bf16|int8`."""
    return click.option("--precision", type=click.Choice(PRECISIONS), default=default, show_default=True, help=help)


def ray_options(command: F) -> F:
    """`--ray ADDRESS` and `--ray-workers N`; `check_ray_options`, then `util.ray_workers` read them."""
    address = click.option(
        "--ray",
        "ray_address",
        metavar="ADDRESS",
        help="Divide the work among the machines of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local to start "
        "one here (extra: ray).",
    )
    workers = click.option(
        "--ray-workers", type=Count(), metavar="N", help="Workers on it.  [default: one per GPU, or per machine]"
    )
    return address(workers(command))


def check_ray_options(address: str | None, workers: int | None, device: str) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: naming them.
    """
    if workers and not address:
        raise UserError(f"expected --ray ADDRESS with --ray-workers {workers}, got none; add it, or leave both out")
    if address and ":" in device:
        raise UserError(
            f"expected --ray with --device auto, cpu or cuda, got {device}; Ray gives each worker a device of its own"
        )


def seed_option(help: str = "Makes the whole run repeatable.") -> Callable[[F], F]:
    """`--seed N`, `-s N`: where all random choices come from."""
    return click.option("--seed", "-s", type=click.IntRange(0), default=0, show_default=True, metavar="N", help=help)


def candidates_option(default: int, help: str) -> Callable[[F], F]:
    """`--candidates N`, `-n N`: how many results to sample."""
    return click.option("--candidates", "-n", type=Count(), default=default, show_default=True, metavar="N", help=help)


def keep_option(default: int, help: str) -> Callable[[F], F]:
    """`--keep N`, `-k N`: how many results to keep."""
    return click.option("--keep", "-k", type=Count(), default=default, show_default=True, metavar="N", help=help)


def out_option(
    help: str,
    default: str | None = None,
    *,
    required: bool = False,
    folder: bool = False,
    endings: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """`--out PATH`, `-o PATH`, passed on as a `Path`: the file, or the folder, that the command writes.

    A file is checked before the command runs; a folder, which may replace another one, is checked by the command.
    """
    # click 8.3 takes `default=None` for a given value, and would not miss a required option.
    defaults: dict[str, Any] = {} if required else {"default": default, "show_default": True}
    return click.option(
        "--out",
        "-o",
        type=click.Path(path_type=Path, file_okay=False) if folder else OutputFile(*endings),
        **defaults,
        required=required,
        metavar="FOLDER" if folder else "FILE",
        help=help,
    )


def labels_option(help: str) -> Callable[[F], F]:
    """`--labels A,B,…`, which may be repeated; `read_labels` reads it."""
    return click.option("--labels", multiple=True, metavar="A,B,…", help=help)


def scorer_option(
    help: str = "Shipped name, checkpoint folder, hf:FOLDER-OR-NAME or open_clip:MODEL:PRETRAINED.",
    default: str | None = "emoji",
    *,
    multiple: bool = False,
) -> Callable[[F], F]:
    """`--scorer NAME`, passed on as `scorer`, or `scorers` if it may be repeated."""
    name = "scorers" if multiple else "scorer"
    return click.option(
        "--scorer",
        name,
        default=None if multiple else default,
        multiple=multiple,
        show_default=True,
        metavar="NAME",
        help=help,
    )


def templates_option() -> Callable[[F], F]:
    """`--template TEXT`, passed on as `templates`: the texts that labels are put into."""
    return click.option(
        "--template",
        "templates",
        multiple=True,
        default=("{}",),
        show_default=True,
        metavar="TEXT",
        help="Text with {} for the label, as in 'a picture of {}'; several are averaged.",
    )


def texts_file_option(help: str) -> Callable[[F], F]:
    """`--texts-file FILE`: a file with one text per line, which `read_texts_file` reads."""
    return click.option("--texts-file", type=click.Path(path_type=Path), metavar="FILE", help=help)


def read_texts_file(path: Path) -> list[str]:
    """Texts of a file with one per line, without the spaces around them and without empty ones.

    Raises:
        UserError: the file cannot be read, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    try:
        lines = split_lines(decode_text(read_bytes(path, MAX_TEXT_BYTES, allow_pipe=True)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a UTF-8 file with one text per line, got {path} ({error}); give --texts-file another file"
        ) from error
    return [text for line in lines if (text := line.strip())]


def read_labels(labels: Sequence[str], texts_file: Path | None) -> list[str]:
    """All labels, each once, in the order given.

    Args:
        labels: values of `--labels`, each a comma-separated list.
        texts_file: a text file with one label per line, which may have commas.

    Raises:
        UserError: the file cannot be read, or there is no label at all.
    """
    texts = [label for value in labels for label in split_list(value)]
    if texts_file is not None:
        texts += read_texts_file(texts_file)
    if not texts:
        raise UserError("expected at least one text, got none; give --labels 'a cat,a dog' or --texts-file FILE")
    return list(dict.fromkeys(texts))


def split_list(text: str) -> tuple[str, ...]:
    """Parts of a comma-separated list, without the spaces around them and without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class FiniteFloat(click.FloatRange):
    """A number in a range; click itself takes `nan` and `inf` for numbers in any range that has no end there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text, and refuse what is not finite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}; give another", param, ctx)
        return number

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()  # click would say x<=None


class Count(click.IntRange):
    """A whole number of things, pixels or steps.

    Args:
        least: smallest number.
    """

    def __init__(self, least: int = 1) -> None:
        super().__init__(least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text, and refuse what no machine could compute with."""
        number = super().convert(value, param, ctx)
        if number > MAX_COUNT:
            self.fail(f"expected at most {MAX_COUNT}, got {str(number)[:30]}; give a smaller number", param, ctx)
        return number


class CommaSeparated(click.ParamType):
    """Type of an option whose value is a list such as `bf16,int8`; the command gets a tuple.

    Args:
        item: type of each part, such as `click.FLOAT` or a `click.Choice`.
        minimum: least number of parts.
    """

    name = "list"

    def __init__(self, item: click.ParamType = click.STRING, minimum: int = 0) -> None:
        self.item = item
        self.minimum = minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):  # a default, or converted already
            return value
        parts = split_list(value)
        if len(parts) < self.minimum:
            self.fail(f"expected at least {self.minimum} value, got {value!r}; separate values by commas", param, ctx)
        return tuple(self.item.convert(part, param, ctx) for part in parts)


def echo_text(text: object, json_file: str | None) -> None:
    """Print text for a human reader: to standard error where standard output is to hold JSON and nothing else.

    Control characters, as names and texts from files may have, are shown as escapes.
    """
    click.echo(escape_controls(str(text)), err=json_file == STANDARD_OUTPUT)


def write_json_file(json_file: str | None, values: Any, *, err: bool = False) -> None:
    """Write the value of `--json`: to a file, whose path is printed, or to standard output; None writes nothing.

    Args:
        json_file: a path, `-` for standard output, or None.
        values: what to write.
        err: print the path to standard error, because standard output holds data in another format.

    Raises:
        UserError: the file cannot be written.
    """
    if json_file == STANDARD_OUTPUT:
        click.echo(escape_controls(format_json(values)))
    elif json_file is not None:
        click.echo(write_json(json_file, values), err=err)
