"""Types of options that name what a command writes: checked before the command computes anything that could be lost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from dalle_mini_impl.util.files import check_file_output, check_folder_output
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS
from dalle_mini_impl.util.plots import new_figure

STANDARD_OUTPUT = "-"
"""File name that means standard output, as in other command-line programs."""


def is_special(path: Path) -> bool:
    """Whether a path is a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


class OutputFile(click.ParamType):
    """A file to write; the command gets a `Path`, or the text `-` where that is allowed.

    Args:
        endings: the suffixes it may have, in lower case with their dot; any if empty. Devices and pipes may have any.
        allow_dash: whether `-` stands for standard output.
    """

    name = "file"

    def __init__(self, *endings: str, allow_dash: bool = False) -> None:
        self.endings: Sequence[str] = endings
        self.allow_dash = allow_dash

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Check the path.

        Raises:
            UserError: it has another suffix, is a folder, or cannot be written.
        """
        if self.allow_dash and value == STANDARD_OUTPUT:
            return STANDARD_OUTPUT
        path = Path(value)
        check_file_output(path, () if is_special(path) else self.endings)
        return path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Have the shell complete names of files."""
        return [CompletionItem(incomplete, type="file")]


class PlotFile(OutputFile):
    """A PNG with a chart, which needs matplotlib.

    Args:
        extra: the extra that an error message names if it is missing.
    """

    def __init__(self, extra: str) -> None:
        super().__init__(".png")
        self.extra = extra

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Check the path, and that charts can be drawn.

        Raises:
            UserError: the path cannot be written, or matplotlib is not installed.
        """
        path = super().convert(value, param, ctx)
        new_figure(1, 1, self.extra)
        return path


class OutputFolder(click.ParamType):
    """A folder to write files to; the command gets a `Path`."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check the path, and create the folder if it is absent.

        Raises:
            UserError: it is a file, or cannot be written.
        """
        check_folder_output(value)
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Have the shell complete names of folders."""
        return [CompletionItem(incomplete, type="dir")]


PICTURE_FILE = OutputFile(*PICTURE_FORMATS)
"""A picture: other formats cannot hold what `dalle sample --from` reads."""
