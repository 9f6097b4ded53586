"""Tables of text cells: Markdown for documents, aligned columns for the terminal."""

from collections.abc import Collection, Mapping, Sequence


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows as a Markdown table whose columns are also aligned as plain text.

    Args:
        rows: at least one; each maps column title to cell, all with the same titles in the same order.

    Returns:
        Title line, rule, and one line per row, without a newline at the end.
    """
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def aligned_table(
    rows: Sequence[Sequence[str]], right: Collection[int] = (), min_widths: Sequence[int] = (), gap: int = 2
) -> str:
    """Format rows as columns of equal width, for a terminal.

    Args:
        rows: cells of each row, titles included; every row has the same number of cells.
        right: indices of the columns aligned to the right, such as numbers.
        min_widths: least width of the first columns in characters, so that several tables line up.
        gap: spaces between columns.

    Returns:
        One line per row, without trailing spaces and without a newline at the end.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for column, width in enumerate(min_widths):
        widths[column] = max(widths[column], width)
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append((" " * gap).join(cells).rstrip())
    return "\n".join(lines)
