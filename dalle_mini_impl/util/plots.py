"""Charts with matplotlib, an optional dependency, written whole or not at all."""

from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import need_extra
from dalle_mini_impl.util.files import replace_file


def new_figure(width: float, height: float, extra: str = "eval") -> Any:
    """Make an empty matplotlib figure.

    Args:
        width: in inches.
        height: in inches.
        extra: the extra that an error message names if matplotlib is missing.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise need_extra("matplotlib", extra) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return Path(path)
