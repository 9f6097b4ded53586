"""A comparison of variants as JSON, as pictures, and as the generated part of a document."""

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
from dalle_mini_impl.util.images import save_png
from dalle_mini_impl.util.tables import markdown_table

BEGIN, END = "<!-- begin of what dalle compare writes -->", "<!-- end of what dalle compare writes -->"


def row(variant: Variant, training: dict[str, Any], evaluation: TokenizerEvaluation | None) -> dict[str, Any]:
    """What is kept of a variant: its settings, its training, and what it is worth if it could be trained."""
    report = asdict(evaluation.report) if evaluation else {"size": variant.config.model.image_size}
    return {"name": variant.name, "overrides": list(variant.overrides), **training, **report}


def write(document: Path, facts: dict[str, Any], evaluations: Sequence[TokenizerEvaluation]) -> list[Path]:
    """Write `NAME.json` and a sheet `images/NAME-SIZE.png` per picture size beside a document, and its generated part.

    Returns:
        What was written.

    Raises:
        UserError: the document exists, but has no place for the generated part.
    """
    before, after = written_by_hand(document)
    paths = []
    for size in sizes(facts):
        shown = [evaluation for evaluation in evaluations if evaluation.report.size == size]
        if shown:
            paths.append(save_png(examples_sheet(shown), document.parent / sheet_name(document.stem, size)))
    paths.append(write_json(document.with_suffix(".json"), facts))
    with replace_file(document) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{section(facts, document.stem)}\n{END}{after}", encoding="utf-8")
    return [*paths, document]


def written_by_hand(document: Path) -> tuple[str, str]:
    """What a document says before and after its generated part.

    Raises:
        UserError: the document exists, but has no place for that part.
    """
    text = document.read_text(encoding="utf-8") if document.is_file() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{document} has no lines {BEGIN!r} and {END!r}; add them where the table should be")
    return before, after


def section(facts: dict[str, Any], name: str) -> str:
    """The generated part of a document, from nothing but what its JSON says.

    Args:
        facts: the content of the JSON.
        name: the document's, without suffix.
    """
    parts = [
        f"{facts['minutes']:g} minutes of training each on {facts['machine']}; measured on the {facts['split']} "
        f"pictures of `{facts['data']}`.\n\n```\n{facts['command']}\n```"
    ]
    for size in sizes(facts):
        rows = [row for row in facts["variants"] if row["size"] == size]
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
    """Where a document's sheet of a picture size lies, seen from the document."""
    return f"images/{name}-{size}.png"


def sizes(facts: dict[str, Any]) -> list[int]:
    """The picture sizes of a comparison, in order."""
    return sorted({row["size"] for row in facts["variants"]})


def _report(row: dict[str, Any]) -> TokenizerReport:
    return TokenizerReport(**{field.name: row[field.name] for field in fields(TokenizerReport)})
