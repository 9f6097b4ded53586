"""A comparison of variants: JSON, sheets of pictures, and the generated part of a Markdown document."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dalle_mini_impl.bench.variants import Variant
from dalle_mini_impl.evaluate.image_tokenizer import (
    TokenizerEvaluation,
    TokenizerReport,
    examples_sheet,
    table_cells,
    table_notes,
)
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file, write_json
from dalle_mini_impl.util.save_picture import save_picture
from dalle_mini_impl.util.tables import markdown_table

BEGIN, END = "<!-- begin of what dalle compare writes -->", "<!-- end of what dalle compare writes -->"


def variant_entry(variant: Variant, training: dict[str, Any], evaluation: TokenizerEvaluation | None) -> dict[str, Any]:
    """The JSON entry of a variant: its settings, its training, and its evaluation unless the training failed."""
    report = asdict(evaluation.report) if evaluation else {"size": max(variant.config.model.size)}
    return {"name": variant.name, "overrides": list(variant.overrides), **training, **report}


def write_comparison(
    document: Path, comparison: dict[str, Any], evaluations: Sequence[TokenizerEvaluation]
) -> list[Path]:
    """Write `NAME.json` and a sheet `images/NAME-SIZE.png` per picture size beside a document, and its generated part.

    Args:
        document: the Markdown file.
        comparison: the content of the JSON.
        evaluations: of the variants that were trained, for the sheets.

    Returns:
        The files written.

    Raises:
        UserError: the document exists, but has no markers of the generated part.
    """
    before, after = handwritten_parts(document)
    paths = []
    for size in sizes(comparison):
        same_size = [evaluation for evaluation in evaluations if evaluation.report.size == size]
        if same_size:
            paths.append(save_picture(examples_sheet(same_size), document.parent / sheet_name(document.stem, size)))
    paths.append(write_json(document.with_suffix(".json"), comparison))
    with replace_file(document) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{section(comparison, document.stem)}\n{END}{after}", encoding="utf-8")
    return [*paths, document]


def handwritten_parts(document: Path) -> tuple[str, str]:
    """The text of a document before and after its generated part.

    Raises:
        UserError: the document exists, but has no markers of that part.
    """
    text = document.read_text(encoding="utf-8") if document.is_file() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(
            f"{document} has no lines {BEGIN!r} and {END!r}; add them where the table should be, or name a new file"
        )
    return before, after


def section(comparison: dict[str, Any], name: str) -> str:
    """The generated part of a document, from its JSON alone.

    Args:
        comparison: the content of the JSON.
        name: of the document, without suffix.
    """
    parts = [
        f"{comparison['minutes']:g} minutes of training each on {comparison['machine']}; measured on the "
        f"{comparison['split']} pictures of `{comparison['data']}`.\n\n```\n{comparison['command']}\n```"
    ]
    for size in sizes(comparison):
        rows = [row for row in comparison["variants"] if row["size"] == size]
        trained = [row for row in rows if "failed" not in row]
        parts.append(f"## {size} px")
        if trained:
            reports = [_report(row) for row in trained]
            cells = [
                {"variant": row["name"], "steps": str(row["steps"]), **table_cells(report)}
                for row, report in zip(trained, reports, strict=True)
            ]
            parts += [markdown_table(cells), table_notes(reports)]
            parts.append(f"![The same pictures before and after each variant]({sheet_name(name, size)})")
        parts += [f"`{row['name']}` failed: {row['failed']}" for row in rows if "failed" in row]
    return "\n\n".join(parts)


def sheet_name(name: str, size: int) -> str:
    """Path of the sheet of a picture size, relative to the document."""
    return f"images/{name}-{size}.png"


def sizes(comparison: dict[str, Any]) -> list[int]:
    """The picture sizes of a comparison, smallest first."""
    return sorted({row["size"] for row in comparison["variants"]})


def _report(row: dict[str, Any]) -> TokenizerReport:
    return TokenizerReport(**{field.name: row[field.name] for field in fields(TokenizerReport)})
